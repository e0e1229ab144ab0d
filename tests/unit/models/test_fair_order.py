"""Turns: whose goes first."""

from hypothesis import given
from hypothesis import strategies as st

from models.fair_order import FairOrder


def order(turns: FairOrder, asked: list[tuple[str, float]]) -> list[str]:
    """The sources in the order in which they go."""
    numbers = [(turns.take(source, cost), place, source) for place, (source, cost) in enumerate(asked)]
    return [source for _, _, source in sorted(numbers)]


def test_sources_alternate_whatever_came_first() -> None:
    assert "".join(order(FairOrder(), [(source, 1) for source in "aaabbc"])) == "abcaba"


def test_what_costs_more_comes_less_often() -> None:
    assert "".join(order(FairOrder(), [("a", 2), ("a", 2), ("a", 2), ("b", 1), ("b", 1), ("b", 1)])) == "abbaba"


def test_a_source_that_had_nothing_begins_level() -> None:
    turns = FairOrder()
    for _ in range(10):
        turns.go(turns.take("a", 1), 1, 1)
    assert turns.take("b", 1) == turns.take("a", 1) == 10


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=40))
def test_each_source_keeps_its_order(asked: list[tuple[str, int]]) -> None:
    turns, last = FairOrder(), dict[str, float]()
    for source, cost in asked:
        turn = turns.take(source, cost)
        assert turn > last.get(source, -1)
        last[source] = turn
        turns.go(min(last.values()), cost, len(last))


def test_sources_that_keep_coming_do_not_keep_one_from_its_turns() -> None:
    turns, waiting, gone = FairOrder(), list[tuple[float, str]](), list[str]()
    waiting = [(turns.take("patient", 1), "patient") for _ in range(10)]
    for number in range(40):
        waiting.append((turns.take(f"new {number}", 1), "new"))
        waiting.sort()
        turn, source = waiting.pop(0)
        gone.append(source)
        turns.go(turn, 1, 2)
    assert gone.count("patient") == 10


def test_sources_that_are_gone_are_forgotten() -> None:
    turns = FairOrder()
    for number in range(100_000):
        turns.go(turns.take(f"source {number}", 1), 1, 1)
    assert len(turns._next) < 3000
