"""Which texts share a batch."""

from hypothesis import given
from hypothesis import strategies as st

from service.embedding.packing import first_within, like_first_within

lengths = st.lists(st.integers(1, 512), min_size=1, max_size=60)
budgets = st.integers(1, 4096)


@given(lengths, budgets)
def test_without_padding_the_oldest_that_fit_go(lengths, budget):
    count = len(first_within(lengths, budget))
    assert count == 1 or sum(lengths[:count]) <= budget
    assert count == len(lengths) or sum(lengths[: count + 1]) > budget


@given(lengths, budgets, st.integers(0, 600))
def test_with_padding_the_oldest_goes_and_the_budget_holds(lengths, budget, overhead):
    chosen = like_first_within(lengths, budget, overhead)
    batch = [lengths[i] for i in chosen]
    assert 0 in chosen
    assert len(set(chosen)) == len(chosen)
    assert len(batch) == 1 or max(batch) * len(batch) <= budget


@given(st.integers(1, 100), st.integers(1, 500), st.integers(1, 20_000))
def test_equal_lengths_fill_the_budget_however_large(length, count, budget):
    assert len(like_first_within([length] * count, budget, 0)) == max(1, min(count, budget // length))


def test_texts_of_like_length_go_together():
    assert sorted(like_first_within([6, 200, 5, 201, 7], 10_000, overhead=32)) == [0, 2, 4]
    assert sorted(like_first_within([200, 6, 5, 201, 7], 10_000, overhead=32)) == [0, 3]


def test_a_text_above_the_budget_goes_alone():
    assert like_first_within([5000, 10, 20], budget=1000, overhead=10_000) == [0]
    assert first_within([5000, 10, 20], budget=1000) == [0]
