"""A rate-limited log: each event at most once an interval, with a count of those left out."""

import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)


class RareLog:
    """Writes the first warning of an event at once, and counts further ones until the interval is over.

    It keeps one entry per event, so its memory is bounded. Not thread-safe.
    """

    def __init__(self, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._last_s: dict[str, float] = {}
        self._unwritten: dict[str, tuple[int, dict[str, object]]] = {}

    def warn(self, event: str, **fields: object) -> None:
        """Write the event, with the number of those not written before it, or count it."""
        now = self._clock()
        count, _ = self._unwritten.get(event, (0, {}))
        if now - self._last_s.get(event, -self._interval_s) < self._interval_s:
            self._unwritten[event] = (count + 1, fields)
            return
        self._unwritten.pop(event, None)
        self._last_s[event] = now
        log.warning(event, **fields, **({"unwritten": count} if count else {}))

    def flush(self) -> None:
        """Write what is counted: the last occurrence of each event and how many came with it."""
        for event, (count, fields) in self._unwritten.items():
            log.warning(event, **fields, **({"unwritten": count - 1} if count > 1 else {}))
        self._unwritten.clear()
