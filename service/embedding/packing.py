"""Which waiting texts form one batch, by their lengths in tokens, given in the order of their turns."""

from collections.abc import Sequence
from itertools import accumulate


def first_within(lengths: Sequence[int], budget: int) -> list[int]:
    """A batch without padding: the first texts with at most `budget` tokens together; one alone may have more.

    -> indices.
    """
    fitting = sum(1 for total in accumulate(lengths) if total <= budget)
    return list(range(max(1, fitting)))


def like_first_within(lengths: Sequence[int], budget: int, overhead: int) -> list[int]:
    """A padded batch: the first text and those nearest to it in length. -> indices.

    It costs longest x count tokens, at most `budget` (one text alone may cost more). It grows to the side that adds
    less padding, until a text would add more than `overhead` tokens of it: the cost of starting another batch.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    low = high = order.index(0)
    longest = lengths[0]
    while True:
        below = longest - lengths[order[low - 1]] if low > 0 else None
        above = (lengths[order[high + 1]] - longest) * (high - low + 1) if high + 1 < len(order) else None
        if above is not None and above <= overhead and (below is None or above <= below):
            grown = lengths[order[high + 1]]
            if grown * (high - low + 2) <= budget:
                longest, high = grown, high + 1
                continue
        if below is None or below > overhead or longest * (high - low + 2) > budget:
            return order[low : high + 1]
        low -= 1
