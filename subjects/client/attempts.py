"""Deadlines, retries and pauses of a client's calls."""

import asyncio
import math
import random
import time

from ..errors import DeadlinePassed, MLError

FIRST_PAUSE_S = 0.05


class Pauses:
    """Pauses between attempts: twice as long each time, up to max_s, and with jitter."""

    def __init__(self, first_s: float, max_s: float = math.inf) -> None:
        self._first_s = self._next_s = first_s
        self._max_s = max_s

    def after(self, error: MLError) -> float:
        """The next pause in seconds, and at least the time that the error names."""
        pause_s = max(self._next_s, (error.retry_after_ms or 0) / 1000) * random.uniform(1.0, 1.5)
        self._next_s = min(2 * self._next_s, self._max_s)
        return pause_s

    def restart(self) -> None:
        """Begin with the first pause again."""
        self._next_s = self._first_s


class Silence:
    """The longest silence of a lasting stream: first_s before its first frame, then frame_s between two frames."""

    def __init__(self, first_s: float, frame_s: float) -> None:
        self._first_s = first_s
        self._frame_s = frame_s

    def left_s(self, more_s: float = 0.0) -> float:
        """Seconds until the next frame must come. more_s: as in Attempts; above 0 once the stream has begun."""
        return self._frame_s if more_s else self._first_s


class Attempts:
    """The deadline and the retries of one call.

    timeout_s: for the whole call. retries: how often a retryable error is tried again.
    """

    def __init__(self, timeout_s: float, retries: int) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._left = retries
        self._pauses = Pauses(FIRST_PAUSE_S)

    def left_s(self, more_s: float = 0.0) -> float:
        """Seconds until more_s after the deadline. Raises DeadlinePassed."""
        left = self._deadline + more_s - time.monotonic()
        if left <= 0:
            raise DeadlinePassed("the call's time is up")
        return left

    async def wait(self, error: MLError) -> None:
        """Sleep until the next attempt; raises the error if there is none."""
        pause_s = self._pauses.after(error)
        if not error.retryable or self._left == 0 or time.monotonic() + pause_s >= self._deadline:
            raise error
        self._left -= 1
        await asyncio.sleep(pause_s)
