"""Start-time fair queueing: the order in which the waiting items of several callers are served."""


class FairOrder:
    """Start tags: the item with the lowest is served first. Items of a caller stay in order. Not thread-safe."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._reached = 0.0
        self._prune_above = 1024

    def take(self, caller: str, cost: float) -> float:
        """The start tag of the caller's next item, which has this cost.

        A caller that had none waiting begins level with the others: what it did not use is not saved up.
        """
        tag = max(self._reached, self._next.get(caller, 0.0))
        self._next[caller] = tag + cost
        if len(self._next) > self._prune_above:
            self._next = {name: after for name, after in self._next.items() if after > self._reached}
            self._prune_above = max(1024, 2 * len(self._next))
        return tag

    def serve(self, tag: float, cost: float, callers: int) -> None:
        """Note that the item with this tag is served now. callers: how many have an item that waits or runs.

        The virtual time advances by cost / callers, so that later items never get ahead of all that wait.
        """
        self._reached = max(self._reached, tag) + cost / callers
