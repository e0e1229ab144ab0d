"""What something takes that has a size: so much for itself, and so much for each token in it."""

_KEPT = 0.98
"""Of what is known, after another one."""


class Cost:
    """Learned by least squares; the latest count most. As long as all have one size, a token takes nothing."""

    def __init__(self) -> None:
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0

    def took(self, tokens: int, seconds: float) -> None:
        """One of so many tokens took so long."""
        values = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        sums = (self._weight, self._tokens, self._seconds, self._squares, self._products)
        self._weight, self._tokens, self._seconds, self._squares, self._products = (
            _KEPT * known + value for known, value in zip(sums, values, strict=True)
        )

    def expected_s(self, tokens: float, times: float = 1.0) -> float:
        """What so many tokens will take, in seconds, cut into so many; 0 while nothing is known."""
        if not self._weight:
            return 0.0
        base_s = max(0.0, (self._seconds - self.token_s * self._tokens) / self._weight)
        return times * base_s + self.token_s * tokens

    @property
    def token_s(self) -> float:
        """What one token more takes, in seconds."""
        spread = self._weight * self._squares - self._tokens**2
        if spread <= 1e-6 * self._squares:
            return 0.0
        slope = (self._weight * self._products - self._tokens * self._seconds) / spread
        # Where noise would have one of no tokens take less than nothing, the best line from nothing at all.
        return max(0.0, min(slope, self._products / self._squares))
