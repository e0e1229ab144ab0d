"""What came of one turn of a contender: when each piece of each text arrived, and what follows from that.

Knows seconds and counts; measures nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .generation_child import Arrivals


@dataclass(frozen=True, slots=True)
class Sample:
    """The arrivals of each stream's pieces, in seconds from the start, and how many tokens the streams have together.

    A piece is a token, or a few where a character takes them or the bus coalesces.
    """

    tokens: int
    seconds: float
    arrivals: Arrivals

    @property
    def rate(self) -> float:
        """Tokens per second of all streams together, from the start to the last token."""
        return self.tokens / self.seconds

    def first_ms(self) -> list[float]:
        """For each stream the time to its first piece."""
        return [1000 * stream[0] for stream in self.arrivals]

    def gaps_ms(self) -> list[float]:
        """The times between two pieces of a stream, of all streams."""
        return [1000 * float(gap) for stream in self.arrivals for gap in np.diff(stream)]


def of_arrivals(arrivals: Arrivals, tokens: int) -> Sample:
    """A sample of streams of so many tokens each. Raises ValueError if one has none, or more than that."""
    counts = [len(stream) for stream in arrivals]
    if not all(0 < count <= tokens for count in counts):
        raise ValueError(f"expected {tokens} tokens of each stream, got {counts}")
    return Sample(tokens * len(arrivals), max(stream[-1] for stream in arrivals), arrivals)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` of the values stay below; NaN of none."""
    return float(np.percentile(values, percent)) if len(values) else float("nan")
