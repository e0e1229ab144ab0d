"""Which texts share a batch."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.packing import like_oldest_within, oldest_within

lengths = st.lists(st.integers(1, 512), min_size=1, max_size=60)
budgets = st.integers(1, 4096)


@given(lengths, budgets)
def test_without_padding_the_oldest_that_fit_go(lengths, budget):
    count = oldest_within(lengths, budget)
    assert count == 1 or sum(lengths[:count]) <= budget
    assert count == len(lengths) or sum(lengths[: count + 1]) > budget


@given(lengths, budgets, st.integers(0, 600))
def test_with_padding_the_oldest_goes_and_the_budget_holds(lengths, budget, overhead):
    chosen = like_oldest_within(lengths, budget, overhead)
    batch = [lengths[i] for i in chosen]
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)
    assert len(batch) == 1 or max(batch) * len(batch) <= budget


@given(st.lists(st.integers(1, 200), min_size=1, max_size=9), st.integers(200, 1000), st.integers(0, 300))
def test_the_runs_cost_the_least_there_is(lengths, budget, overhead):
    assert _total(lengths, budget, overhead) == min(_costs(sorted(lengths), budget, overhead))


def _total(lengths: list[int], budget: int, overhead: int) -> int:
    """What all texts cost when batch after batch is taken by the rule, each from those that are left."""
    left, total = list(lengths), 0
    while left:
        chosen = like_oldest_within(left, budget, overhead)
        total += max(left[i] for i in chosen) * len(chosen) + overhead
        left = [length for i, length in enumerate(left) if i not in chosen]
    return total


def _costs(lengths: list[int], budget: int, overhead: int):
    """What every way to cut sorted lengths into runs costs."""
    for cuts in range(2 ** (len(lengths) - 1)):
        ends = [i + 1 for i in range(len(lengths) - 1) if cuts >> i & 1]
        runs = [lengths[a:b] for a, b in pairwise([0, *ends, len(lengths)])]
        if all(len(run) == 1 or run[-1] * len(run) <= budget for run in runs):
            yield sum(run[-1] * len(run) + overhead for run in runs)


def test_texts_of_like_length_go_together():
    assert sorted(like_oldest_within([6, 200, 5, 201, 7], 10_000, overhead=32)) == [0, 2, 4]
    assert sorted(like_oldest_within([200, 6, 5, 201, 7], 10_000, overhead=32)) == [0, 3]


def test_a_text_above_the_budget_goes_alone():
    assert like_oldest_within([5000, 10, 20], budget=1000, overhead=10_000) == [0]
    assert oldest_within([5000, 10, 20], budget=1000) == 1
