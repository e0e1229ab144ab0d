"""Which waiting texts go into one padded batch. Pure arithmetic on lengths in tokens."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], anchor: int, budget: int, overhead: int) -> slice:
    """The run of sorted lengths around the anchor that makes one batch.

    A batch costs longest x count padded tokens, at most `budget` of them (the anchor alone may cost more). The run
    grows to whichever side adds less padding, until a text would add more than `overhead` tokens of padding: what
    starting a batch of its own costs.
    """
    low, high, longest = anchor, anchor + 1, lengths[anchor]
    while True:
        below = longest - lengths[low - 1] if low > 0 else None
        above = (lengths[high] - longest) * (high - low) if high < len(lengths) else None
        if above is not None and (below is None or above <= below):
            if above > overhead or lengths[high] * (high - low + 1) > budget:
                above = None
            else:
                longest, high = lengths[high], high + 1
                continue
        if below is None or below > overhead or longest * (high - low + 1) > budget:
            return slice(low, high)
        low -= 1
