"""Which texts share a batch."""

from hypothesis import given
from hypothesis import strategies as st

from service.packing import pack

lengths = st.lists(st.integers(1, 512), min_size=1, max_size=60).map(sorted)


@given(lengths, st.data(), st.integers(1, 4096), st.integers(0, 600))
def test_the_anchor_is_in_the_run_and_the_budget_holds(lengths, data, budget, overhead):
    anchor = data.draw(st.integers(0, len(lengths) - 1))
    run = pack(lengths, anchor, budget, overhead)
    batch = lengths[run]
    assert run.start <= anchor < run.stop
    assert len(batch) == 1 or max(batch) * len(batch) <= budget


@given(st.integers(1, 100), st.integers(1, 50))
def test_equal_lengths_fill_the_budget(length, count):
    run = pack([length] * count, count // 2, budget=length * 10, overhead=0)
    assert run.stop - run.start == min(count, 10)


def test_no_text_is_padded_by_more_than_the_overhead():
    lengths = [5, 6, 7, 200, 201]
    assert pack(lengths, 1, 10_000, overhead=32) == slice(0, 3)
    assert pack(lengths, 4, 10_000, overhead=32) == slice(3, 5)


def test_a_text_above_the_budget_goes_alone():
    assert pack([10, 20, 5000], 2, budget=1000, overhead=10_000) == slice(2, 3)
