"""Texts to token ids, without shared mutable state.

Wraps the Rust tokeniser of a model. Truncation is decided here, per call: the tokeniser's own is a setting of
the whole object, and would race between threads. Knows nothing of tensors or padding.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Literal

from tokenizers import Tokenizer

from ..errors import TextTooLong
from .base import Tokens

Truncation = Literal["end", "start", "error"]


class TextTokenizer:
    """Tokenises texts behind a common prompt, to at most `max_tokens` ids each. Thread-safe.

    special: whether the tokeniser's special tokens stand around a text.
    """

    def __init__(self, backend: Tokenizer, max_tokens: int, special: bool = True) -> None:
        # A copy, because sentence-transformers sets padding and truncation on its own at each call.
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._before, self._after = _special_tokens(self._backend) if special else ([], [])
        self.max_tokens = max_tokens

    def __call__(self, texts: Sequence[str], prompt: str, truncate: Truncation) -> list[Tokens | TextTooLong]:
        """Token ids of each text behind `prompt`, special tokens around them."""
        prompt_ids = self._ids([prompt])[0] if prompt else []
        start = len(self._before) + len(prompt_ids)
        prompt_tokens = start if prompt_ids else 0
        wholes = [[*self._before, *ids, *self._after] for ids in self._ids([prompt + text for text in texts])]
        return [self._fit(i, ids, start, self._after, truncate, prompt_tokens) for i, ids in enumerate(wholes)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _fit(
        self, index: int, ids: list[int], start: int, end: list[int], truncate: Truncation, prompt_tokens: int = 0
    ) -> Tokens | TextTooLong:
        """A text's ids, cut if they are too many between the first `start` of them and those that `end` them."""
        excess = len(ids) - self.max_tokens
        if excess > 0 and truncate == "error":
            return TextTooLong(index, len(ids), self.max_tokens)
        if excess >= 0:
            room = self.max_tokens - len(end)
            kept = min(start, room) if truncate == "start" else room
            ids = [*ids[:kept], *ids[kept + excess : len(ids) - len(end)], *end]
        return Tokens(ids, excess > 0, prompt_tokens)


Write = Callable[[Sequence[str], str], Sequence[str]]


class ChatTokenizer(TextTokenizer):
    """Tokenises texts as the turns of a user, each in a chat of its own, behind the prompt as the system's.

    write: texts and a prompt -> what the model's chat template makes of each. keep_end: whether what it writes behind
    a text stays where the text is cut.
    """

    def __init__(self, backend: Tokenizer, max_tokens: int, write: Write, keep_end: bool = True) -> None:
        super().__init__(backend, max_tokens, special=False)
        self._write = write
        self._keep_end = keep_end

    def __call__(self, texts: Sequence[str], prompt: str, truncate: Truncation) -> list[Tokens | TextTooLong]:
        """Token ids of what the template makes of each text."""
        start, end = self._frame(prompt)
        wholes = self._ids(self._write(texts, prompt))
        return [self._fit(i, ids, start, end, truncate) for i, ids in enumerate(wholes)]

    def _frame(self, prompt: str) -> tuple[int, list[int]]:
        """How many ids come before any text, and the ids behind it: as sentence-transformers finds them out, by what
        two texts have in common that have no token in common."""
        one, other = self._ids(self._write(["0", "1 2 3 4"], prompt))
        start, end = _common(one, other), _common(one[::-1], other[::-1])
        known = self._keep_end and end < min(len(one), len(other))
        return start, one[len(one) - end :] if known else []


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first ids are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _special_tokens(backend: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the model puts before and after a single text."""
    body = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(full)) if full[i : i + len(body)] == body)
    return full[:start], full[start + len(body) :]
