"""Fair queueing: whose item goes first."""

from hypothesis import given
from hypothesis import strategies as st

from models.fair_order import FairOrder


def order(fair: FairOrder, items: list[tuple[str, float]]) -> list[str]:
    """The callers in the order in which they go."""
    numbers = [(fair.take(caller, cost), place, caller) for place, (caller, cost) in enumerate(items)]
    return [caller for _, _, caller in sorted(numbers)]


def test_callers_alternate_in_any_order_of_arrival() -> None:
    assert "".join(order(FairOrder(), [(caller, 1) for caller in "aaabbc"])) == "abcaba"


def test_what_costs_more_comes_less_often() -> None:
    assert "".join(order(FairOrder(), [("a", 2), ("a", 2), ("a", 2), ("b", 1), ("b", 1), ("b", 1)])) == "abbaba"


def test_a_caller_that_had_nothing_begins_level() -> None:
    fair = FairOrder()
    for _ in range(10):
        fair.serve(fair.take("a", 1), 1, 1)
    assert fair.take("b", 1) == fair.take("a", 1) == 10


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=40))
def test_each_caller_keeps_its_order(items: list[tuple[str, int]]) -> None:
    fair, last = FairOrder(), dict[str, float]()
    for caller, cost in items:
        number = fair.take(caller, cost)
        assert number > last.get(caller, -1)
        last[caller] = number
        fair.serve(min(last.values()), cost, len(last))


def test_callers_that_keep_coming_do_not_keep_one_from_its_share() -> None:
    fair, waiting, gone = FairOrder(), list[tuple[float, str]](), list[str]()
    waiting = [(fair.take("patient", 1), "patient") for _ in range(10)]
    for later in range(40):
        waiting.append((fair.take(f"new {later}", 1), "new"))
        waiting.sort()
        number, caller = waiting.pop(0)
        gone.append(caller)
        fair.serve(number, 1, 2)
    assert gone.count("patient") == 10


def test_callers_that_are_gone_are_forgotten() -> None:
    fair = FairOrder()
    for caller in range(100_000):
        fair.serve(fair.take(f"caller {caller}", 1), 1, 1)
    assert len(fair._next) < 3000
