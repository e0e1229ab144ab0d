"""How often something may happen. Knows not what."""

import time


class Rate:
    """So many a second, and as many at once."""

    def __init__(self, a_second: float) -> None:
        self._a_second = self._left = a_second
        self._at = time.monotonic()

    def allows(self) -> bool:
        """Whether it may happen now; if so, it counts."""
        now = time.monotonic()
        self._left = min(self._a_second, self._left + (now - self._at) * self._a_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
