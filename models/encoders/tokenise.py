"""Tokenising of texts for embedding, without shared mutable state: truncation is decided per call, since as a setting
of the Rust tokeniser it would race between threads."""

from collections.abc import Callable, Sequence
from itertools import takewhile

from tokenizers import Tokenizer

from ..errors import TextTooLong
from ..tokenized_text import TokenizedText, Vocabulary, tokenized
from .base import Text, Tokens, Truncation


class TextTokenizer:
    """Tokenises texts behind a common prompt, to at most `max_tokens` ids each. Thread-safe.

    special: whether to put the tokeniser's special tokens around a text. rows: of the model's table of tokens.
    """

    def __init__(self, backend: Tokenizer, max_tokens: int, special: bool = True, rows: int | None = None) -> None:
        # A copy, because sentence-transformers sets padding and truncation on its own at each call.
        self._backend = Tokenizer.from_str(backend.to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        self._before, self._after = _special_tokens(self._backend) if special else ([], [])
        self.max_tokens = max_tokens
        self.vocabulary = Vocabulary(self._backend, rows)

    def __call__(self, texts: Sequence[Text], prompt: str, truncate: Truncation) -> list[Tokens | TextTooLong]:
        """Token ids of each text with `prompt` in front, and special tokens around both. Ids stay as they are, but are
        cut as their text is."""
        start, end = self._frame(prompt)
        made = iter(self._wholes([text for text in texts if isinstance(text, str)], prompt))
        return [
            self._fit(i, next(made), len(start), end, truncate)
            if isinstance(text, str)
            else self._fit(i, list(text), _common(text, start), end if list(text[-len(end) :]) == end else [], truncate)
            for i, text in enumerate(texts)
        ]

    def _frame(self, prompt: str) -> tuple[list[int], list[int]]:
        """The ids before and behind any text."""
        return [*self._before, *(self._ids([prompt])[0] if prompt else [])], self._after

    def _wholes(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        return [[*self._before, *ids, *self._after] for ids in self._ids([prompt + text for text in texts])]

    def tokenized(self, text: str, prompt: str, special: bool = True, offsets: bool = True) -> TokenizedText:
        """The whole text to look at. special: whether to put the special tokens around it."""
        before, after = (self._before, self._after) if special else ([], [])
        return tokenized(self._backend, text, lead=prompt, before=before, after=after, offsets=offsets)

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [one.ids for one in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _prompt_tokens(self, start: int) -> int:
        """How many ids belong to the prompt, of so many before a text."""
        return start if start > len(self._before) else 0

    def _fit(
        self, index: int, ids: list[int], start: int, end: list[int], truncate: Truncation
    ) -> Tokens | TextTooLong:
        """A text's ids, cut to max_tokens between the first `start` ids and the trailing ones, `end`."""
        excess = len(ids) - self.max_tokens
        if excess > 0 and truncate == "error":
            return TextTooLong(index, len(ids), self.max_tokens)
        if excess >= 0:
            limit = self.max_tokens - len(end)
            kept = min(start, limit) if truncate == "start" else limit
            ids = [*ids[:kept], *ids[kept + excess : len(ids) - len(end)], *end]
        return Tokens(ids, excess > 0, self._prompt_tokens(start))


Render = Callable[[Sequence[str], str], Sequence[str]]


class ChatTokenizer(TextTokenizer):
    """Tokenises each text as the user's message of a chat, with the prompt as the system's.

    render: texts and a prompt -> the output of the model's chat template for each text. keep_end: whether to keep what
    the template writes behind a text that is cut.
    """

    def __init__(
        self, backend: Tokenizer, max_tokens: int, render: Render, keep_end: bool = True, rows: int | None = None
    ) -> None:
        super().__init__(backend, max_tokens, special=False, rows=rows)
        self._render = render
        self._keep_end = keep_end

    def tokenized(self, text: str, prompt: str, special: bool = True, offsets: bool = True) -> TokenizedText:
        """As above; the rendered text has no offsets in the caller's. Without special tokens it is not rendered."""
        if not special:
            return super().tokenized(text, prompt, False, offsets)
        return TokenizedText(self._wholes([text], prompt)[0])

    def _frame(self, prompt: str) -> tuple[list[int], list[int]]:
        """Found as sentence-transformers does: by what two texts without a common token have in common."""
        one, other = self._ids(self._render(["0", "1 2 3 4"], prompt))
        start, end = _common(one, other), _common(one[::-1], other[::-1])
        known = self._keep_end and end < min(len(one), len(other))
        return one[:start], one[len(one) - end :] if known else []

    def _wholes(self, texts: Sequence[str], prompt: str) -> list[list[int]]:
        return self._ids(self._render(texts, prompt)) if texts else []

    def _prompt_tokens(self, start: int) -> int:
        """None: pooling leaves no part of a chat out."""
        return 0


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _special_tokens(backend: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the model puts before and after a single text."""
    body = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    start = next(i for i in range(len(full)) if full[i : i + len(body)] == body)
    return full[:start], full[start + len(body) :]
