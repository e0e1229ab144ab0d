"""How much of the prompts a step computes while others wait for their next token: so much that they hardly notice.

Learns from how long steps take. Knows no request.
"""

STRETCH = 2.5
"""How many times as long a step may take with a part of a prompt in it as without."""
LEAST_TOKENS = 16
"""Of a prompt, computed in a step however long that takes: it must come to an end too."""
_WEIGHT = 0.2  # of the latest step in an average


class PrefillBudget:
    """most_tokens: what a step computes of prompts at most. Until it has seen steps of both kinds, that much."""

    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._decode_s: float | None = None
        self._token_s: float | None = None

    @property
    def chunk_tokens(self) -> int:
        """What the next step may compute of prompts, beside tokens that somebody waits for."""
        if not self._decode_s or not self._token_s:
            return self._most
        fitting = int((STRETCH - 1) * self._decode_s / self._token_s)
        return max(min(LEAST_TOKENS, self._most), min(self._most, fitting))

    def ran(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step of so many next tokens and so many tokens of prompts."""
        if not prompt_tokens:
            self._decode_s = _averaged(self._decode_s, seconds)
        elif decodes and self._decode_s:
            self._token_s = _averaged(self._token_s, max(0.0, seconds - self._decode_s) / prompt_tokens)


def _averaged(average: float | None, value: float) -> float:
    return value if average is None else average + _WEIGHT * (value - average)
