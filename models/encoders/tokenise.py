"""Texts to token ids, without shared mutable state.

Wraps the Rust tokeniser of a model. Truncation is decided here, per call: the tokeniser's own is a setting of
the whole object, and would race between threads. Knows nothing of tensors or padding.
"""

from collections.abc import Sequence
from typing import Literal

from tokenizers import Encoding, Tokenizer

from ..errors import TextTooLong
from .base import Tokens

Truncation = Literal["end", "start", "error"]


class TextTokenizer:
    """Tokenises texts behind a common prompt, to at most `max_tokens` ids each. Thread-safe."""

    def __init__(self, backend: Tokenizer, max_tokens: int) -> None:
        # A copy, because sentence-transformers sets padding and truncation on its own at each call.
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._before, self._after = _special_tokens(self._backend)
        self.max_tokens = max_tokens
        self._body_limit = max_tokens - len(self._before) - len(self._after)

    def __call__(self, texts: Sequence[str], prompt: str, truncate: Truncation) -> list[Tokens | TextTooLong]:
        """Token ids of each text behind `prompt`, special tokens around them."""
        prompt_tokens = len(self._bodies([prompt])[0]) if prompt else 0
        bodies = self._bodies([prompt + text for text in texts])
        return [self._fit(i, body.ids, prompt_tokens, truncate) for i, body in enumerate(bodies)]

    def _bodies(self, texts: list[str]) -> list[Encoding]:
        return self._backend.encode_batch_fast(texts, add_special_tokens=False)

    def _fit(self, index: int, body: list[int], prompt_tokens: int, truncate: Truncation) -> Tokens | TextTooLong:
        excess = len(body) - self._body_limit
        if excess > 0 and truncate == "error":
            return TextTooLong(index, self.max_tokens + excess, self.max_tokens)
        if excess > 0:
            kept = min(prompt_tokens, self._body_limit) if truncate == "start" else self._body_limit
            body = body[:kept] + body[kept + excess :]
        prompt_length = prompt_tokens + len(self._before) if prompt_tokens else 0
        return Tokens([*self._before, *body, *self._after], excess > 0, prompt_length)


def _special_tokens(backend: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the model puts before and after a single text."""
    body = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(full)) if full[i : i + len(body)] == body)
    return full[:start], full[start + len(body) :]
