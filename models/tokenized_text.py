"""Texts as tokens to look at: their ids, where each is in the text, and the vocabulary that gives their text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from .errors import InvalidOption


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text as the ids that a model reads. Without an encoding nothing is known of their places.

    text: what the encoding is of. lead: characters of it that the model puts before a caller's text. before: how many
    ids come before those of the encoding; below 0: how many of its own are left out there.
    """

    ids: Sequence[int]
    text: str = ""
    encoding: Encoding | None = None
    lead: int = 0
    before: int = 0

    def offsets(self) -> list[tuple[int, int]] | None:
        """For each token the bytes [start, end) of the caller's text, in UTF-8, that it stands for.

        (0, 0) for tokens that are not in the text. Tokens that share a character all have its bytes.
        """
        if self.encoding is None:
            return None
        found = np.array(self.encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts = _byte_starts(self.text)
        inside = np.maximum(starts[found] - starts[self.lead], 0)
        whole = np.zeros((len(self.ids), 2), dtype=np.int64)
        start = max(self.before, 0)
        inside = inside[start - self.before :]
        whole[start : start + len(inside)] = inside
        return [(start, end) for start, end in whole.tolist()]


def tokenized(
    backend: Tokenizer,
    text: str,
    *,
    lead: str = "",
    before: Sequence[int] = (),
    after: Sequence[int] = (),
    offsets: bool = True,
) -> TokenizedText:
    """A text with `lead` in front, between the ids `before` and `after`. Without offsets it takes two thirds of the
    time."""
    if not offsets:
        body = backend.encode_batch_fast([lead + text], add_special_tokens=False)[0].ids
        return TokenizedText([*before, *body, *after])
    encoding = backend.encode(lead + text, add_special_tokens=False)
    return TokenizedText([*before, *encoding.ids, *after], lead + text, encoding, len(lead), len(before))


class Vocabulary:
    """The tokens of a model. Thread-safe. special: ids of the special tokens, which are no part of a text.

    rows: of the model's weights; a token without one does not exist. piece: the text of an id; None: its name.
    """

    def __init__(self, backend: Tokenizer, rows: int | None = None, piece: Callable[[int], str] | None = None) -> None:
        added = backend.get_added_tokens_decoder()
        self.special = frozenset(token for token, facts in added.items() if facts.special)
        self._backend = backend
        self._piece = piece or self._name
        ids = np.array([token for token in backend.get_vocab().values() if rows is None or token < rows])
        self._known = np.zeros(ids.max() + 1, dtype=bool)
        self._known[ids] = True

    def piece(self, token: int) -> str:
        """The text of a token; U+FFFD for a part of a character."""
        return self._piece(token)

    def decode(self, tokens: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids, as the tokeniser's own decoder writes it. Raises InvalidOption."""
        self.require(tokens)
        return self._backend.decode(tokens, skip_special_tokens=skip_special)

    def require(self, tokens: Sequence[int], field: str = "tokens") -> None:
        """Raises InvalidOption, which names the field, for the first id that the model does not have."""
        last = len(self._known) - 1
        ids = np.array(tokens, dtype=np.int64)
        known = (ids >= 0) & self._known[ids.clip(0, last)] & (ids <= last)
        if not known.all():
            place = int(known.argmin())
            wrong = f"token id {tokens[place]} at place {place} does not exist"
            raise InvalidOption(f"field {field!r}: {wrong}; the model's ids are 0 to {last}")

    def _name(self, token: int) -> str:
        return self._backend.id_to_token(token) or ""


def _byte_starts(text: str) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Where each character begins in UTF-8, and at last where the text ends: (len(text) + 1,)."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])
