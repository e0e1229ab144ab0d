"""Admission control: rate limits, and the estimate whether work would be ready by its deadline."""

import time

from subjects.errors import Busy, Unavailable

MARGIN = 1.2
"""Work is refused if this multiple of its expected time does not fit: a late answer is useless and costs as much."""
_DECAY = 0.98
"""Weight of earlier observations after one more."""


def retry_after_ms(seconds: float) -> int:
    """When a refused caller should ask again, within 50 ms and a minute."""
    return int(1000 * min(60.0, max(0.05, seconds)))


def past_deadline(subject: str, ready_in_s: float, left_s: float) -> Busy | None:
    """Why work is refused that is expected to be ready too late; None if it will be in time.

    subject: the start of the message, up to the time. left_s: until the deadline, in seconds; work whose deadline has
    passed already is not refused here.
    """
    needed_s = MARGIN * ready_in_s
    if not needed_s > left_s > 0:
        return None
    return Busy(
        f"{subject} {needed_s:.1f} s now, which is past the deadline; try again later",
        retry_after_ms=retry_after_ms(needed_s - left_s),
    )


def shutting_down() -> Unavailable:
    """The error for work that comes while the worker stops."""
    return Unavailable("this worker is shutting down; ask again", retry_after_ms=100)


class RateLimit:
    """Lets `per_second` events pass a second, and as many at once."""

    def __init__(self, per_second: float) -> None:
        self._per_second = self._tokens = per_second
        self._filled_at = time.monotonic()

    def allows(self) -> bool:
        """Whether an event may happen now; if so, it is counted."""
        now = time.monotonic()
        self._tokens = min(self._per_second, self._tokens + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class LinearCost:
    """Time as a fixed part plus a part for each token, learned by least squares; recent observations count most.

    As long as all observations have one size, the part for each token is 0.
    """

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn that work of this size took this long."""
        values = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        sums = (self._weight, self._tokens, self._seconds, self._squares, self._products)
        self._weight, self._tokens, self._seconds, self._squares, self._products = (
            _DECAY * known + value for known, value in zip(sums, values, strict=True)
        )

    def expected_s(self, tokens: float, parts: float = 1.0) -> float:
        """Seconds that this many tokens will take, run in this many parts; 0 while nothing is known."""
        if not self._weight:
            return 0.0
        fixed_s = max(0.0, (self._seconds - self.token_s * self._tokens) / self._weight)
        return parts * fixed_s + self.token_s * tokens

    @property
    def token_s(self) -> float:
        """Seconds for each additional token."""
        spread = self._weight * self._squares - self._tokens**2
        if spread <= 1e-6 * self._squares:
            return 0.0
        slope = (self._weight * self._products - self._tokens * self._seconds) / spread
        # Where noise would make the fixed part negative, the best line through zero.
        return max(0.0, min(slope, self._products / self._squares))
