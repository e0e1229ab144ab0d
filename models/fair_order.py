"""In which order things go that wait for several sources: fair queueing, by numbers that are given once.

Knows nothing of what waits. Not thread-safe.
"""


class FairOrder:
    """Each source's things in their order; of several sources the one that has had least goes first."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._reached = 0.0
        self._look_at = 1024

    def take(self, source: str, cost: float) -> float:
        """A number for a source's next thing, which costs so much; lower ones go first.

        A source that had nothing begins level with the others: what it did not use is not saved up.
        """
        turn = max(self._reached, self._next.get(source, 0.0))
        self._next[source] = turn + cost
        if len(self._next) > self._look_at:
            self._next = {name: after for name, after in self._next.items() if after > self._reached}
            self._look_at = max(1024, 2 * len(self._next))
        return turn

    def go(self, turn: float, cost: float, sources: int) -> None:
        """What has this number goes now, and costs so much; sources: how many have something that waits or goes.

        Each of them has had its part of that time. So those that come later never go before all that waits, however
        many they are.
        """
        self._reached = max(self._reached, turn) + cost / sources
