"""One call's deadline and its retries. Knows errors, no connection."""

import asyncio
import math
import random
import time

from ..errors import DeadlinePassed, MLError

FIRST_PAUSE_S = 0.05


class Pauses:
    """How long to wait before something is tried again: longer each time, up to most_s, and with jitter."""

    def __init__(self, first_s: float, most_s: float = math.inf) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def after(self, error: MLError) -> float:
        """Seconds, and no fewer than the error asks for."""
        pause_s = max(self._next_s, (error.retry_after_ms or 0) / 1000) * random.uniform(1.0, 1.5)
        self._next_s = min(2 * self._next_s, self._most_s)
        return pause_s

    def restart(self) -> None:
        """The next one is the first again."""
        self._next_s = self._first_s


class Silence:
    """Patience with a stream that lasts: first_s until its first frame, then most_s from one to the next."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s

    def left_s(self, more_s: float = 0.0) -> float:
        """Seconds until the next frame. more_s: as of Attempts, which is told once the stream has begun."""
        return self._most_s if more_s else self._first_s


class Attempts:
    """timeout_s: for the whole call. retries: how often a retryable error is tried again."""

    def __init__(self, timeout_s: float, retries: int) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._left = retries
        self._pauses = Pauses(FIRST_PAUSE_S)

    def left_s(self, more_s: float = 0.0) -> float:
        """Seconds until so long after the deadline. Raises DeadlinePassed."""
        left = self._deadline + more_s - time.monotonic()
        if left <= 0:
            raise DeadlinePassed("the call's time is up")
        return left

    async def wait(self, error: MLError) -> None:
        """Sleep until the next attempt, longer each time and with jitter; raise the error if there is none."""
        pause_s = self._pauses.after(error)
        if not error.retryable or self._left == 0 or time.monotonic() + pause_s >= self._deadline:
            raise error
        self._left -= 1
        await asyncio.sleep(pause_s)
