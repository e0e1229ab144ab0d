"""Which waiting texts go into one batch. Pure arithmetic on lengths in tokens."""

from collections.abc import Sequence
from itertools import accumulate

REACH = 64
"""Texts shorter and longer than the oldest that are looked at: enough to fill a batch, few enough to cost nothing."""


def oldest_within(lengths: Sequence[int], budget: int) -> int:
    """How many of the oldest texts make a batch that pads nothing; lengths in order of arrival.

    Together at most `budget` tokens; one text alone may have more.
    """
    fitting = sum(1 for total in accumulate(lengths) if total <= budget)
    return max(1, fitting)


def like_oldest_within(lengths: Sequence[int], budget: int, overhead: int) -> list[int]:
    """Which texts make a padded batch with the oldest: indices into lengths, which are in order of arrival.

    A batch costs longest x count padded tokens, at most `budget` of them (a text alone may cost more), plus
    `overhead`: what starting one costs, as tokens. The texts of about the oldest's length are cut into the runs
    that cost least together (dynamic programming over the ends of runs), and the oldest's run is the batch.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    oldest = order.index(0)
    near = order[max(0, oldest - REACH) : oldest + REACH + 1]
    starts = _cheapest_runs([lengths[i] for i in near], budget, overhead)
    place, end = near.index(0), len(near)
    while starts[end] > place:
        end = starts[end]
    return near[starts[end] : end]


def _cheapest_runs(lengths: Sequence[int], budget: int, overhead: int) -> list[int]:
    """For each end (1 to N) of a prefix of sorted lengths (N,), where its last run starts; entry 0 is unused."""
    costs, starts = [0], [0]
    for end in range(1, len(lengths) + 1):
        longest = lengths[end - 1]
        first = max(0, end - max(1, budget // longest))
        cost, start = min((costs[start] + longest * (end - start), -start) for start in range(first, end))
        costs.append(cost + overhead)
        starts.append(-start)
    return starts
