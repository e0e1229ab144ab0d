"""What waits for one device on behalf of several sources, which share its time evenly.

Start-time fair queueing over measured seconds. Knows nothing of what waits. Not thread-safe.
"""

from collections import defaultdict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Items of each source in their order; of the sources the one that has had the least time goes first."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._used_s: defaultdict[str, float] = defaultdict(float)
        self._reached_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, source: str, item: T) -> None:
        """Let an item in. A source that had none begins level with the others: time not used is not saved up."""
        if source not in self._waiting:
            self._waiting[source] = deque()
            self._used_s[source] = max(self._used_s[source], self._reached_s)
        self._waiting[source].append(item)

    def take(self) -> T | None:
        """The next item, None where nothing waits."""
        if not self._waiting:
            return None
        source = min(self._waiting, key=self._used_s.__getitem__)
        self._reached_s = self._used_s[source]
        item = self._waiting[source].popleft()
        if not self._waiting[source]:
            del self._waiting[source]
        return item

    def charge(self, source: str, seconds: float) -> None:
        """An item of this source has taken so long."""
        self._used_s[source] += seconds

    def clear(self) -> list[T]:
        """All that waited."""
        items = [item for waiting in self._waiting.values() for item in waiting]
        self._waiting.clear()
        return items
