"""Start-time fair queueing: the order in which what waits for several sources is served. Not thread-safe."""


class FairOrder:
    """Gives numbers, of which the lowest goes first: in order for each source, and first the source that had least."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._reached = 0.0
        self._prune_above = 1024

    def take(self, source: str, cost: float) -> float:
        """A number for the source's next item, which has this cost.

        A source that had none waiting begins level with the others: what it did not use is not saved up.
        """
        number = max(self._reached, self._next.get(source, 0.0))
        self._next[source] = number + cost
        if len(self._next) > self._prune_above:
            self._next = {name: after for name, after in self._next.items() if after > self._reached}
            self._prune_above = max(1024, 2 * len(self._next))
        return number

    def go(self, number: float, cost: float, sources: int) -> None:
        """The item with this number goes now. sources: how many have an item that waits or runs.

        Each of them is taken to have had its share of that cost, so that later items never go before all that wait.
        """
        self._reached = max(self._reached, number) + cost / sources
