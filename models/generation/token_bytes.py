"""How a tokeniser spells its tokens: the text or the bytes of each id, and the way from these to characters.

Owns what the decoders of SentencePiece-BPE and of byte-level BPE do, token by token instead of all at once. Knows no
request.
"""

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from tokenizers import Tokenizer

Part: TypeAlias = str | bytes
"""What a token adds to a text: characters, or bytes of some."""

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_SENTENCEPIECE = re.compile("(Replace )*(ByteFallback )?(Fuse (Strip )?)?")
_BYTE = re.compile("<0x[+0-9A-Fa-f][0-9A-Fa-f]>")  # the library takes a sign for a digit


class Characters(Protocol):
    """The characters of one text, as its parts come."""

    def push(self, part: Part) -> str:
        """Add a part -> the characters that nothing to come can change any more."""

    @property
    def owed(self) -> str:
        """Whole characters that a text which ended here would still get, though what comes may change them."""

    def flush(self) -> str:
        """End the text -> what it still owes; unreadable bytes as U+FFFD."""


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """parts: of each token but the special ones, which are no text. byte_level: all of them bytes; else bytes stand in
    for single characters. leading_spaces: at most so many are dropped where a text begins."""

    parts: Mapping[int, Part]
    byte_level: bool
    leading_spaces: int = 0

    def characters(self) -> Characters:
        """Those of a new text."""
        return _ByteLevel() if self.byte_level else _ByteRuns()


class _ByteLevel:
    """Bytes without end, unreadable ones replaced as Unicode recommends: one U+FFFD for each maximal part."""

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, part: Part) -> str:
        assert isinstance(part, bytes)
        return self._decoder.decode(part)

    @property
    def owed(self) -> str:
        return ""

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class _ByteRuns:
    """Text, and runs of bytes that are read as a whole or not at all: else each byte is a U+FFFD.

    So a run is held until it ends: one bad byte takes back the characters before it.
    """

    __slots__ = ("_run",)

    def __init__(self) -> None:
        self._run = b""

    def push(self, part: Part) -> str:
        if isinstance(part, bytes):
            self._run += part
            return ""
        return self.flush() + part if self._run else part

    @property
    def owed(self) -> str:
        try:
            return self._run.decode()
        except UnicodeDecodeError:
            return ""

    def flush(self) -> str:
        run, self._run = self._run, b""
        try:
            return run.decode()
        except UnicodeDecodeError:
            return UNREADABLE * len(run)


def spelling_of(backend: Tokenizer) -> TokenBytes:
    """Read it off a tokeniser's decoder. Raises ValueError, with a clause, where that is of neither kind."""
    special = {token for token, added in backend.get_added_tokens_decoder().items() if added.special}
    names = {token: name for name, token in backend.get_vocab().items() if token not in special}
    steps = list(_steps(json.loads(backend.to_str())["decoder"]))
    kinds = "".join(f"{step['type']} " for step in steps)
    if kinds == "ByteLevel ":
        return TokenBytes({token: _bytes_of(name) for token, name in names.items()}, byte_level=True)
    nothing: Mapping[str, Any] = {"content": " ", "start": 0, "stop": 0}
    strip = next((step for step in steps if step["type"] == "Strip"), nothing)
    replaced = [step for step in steps if step["type"] == "Replace"]
    plain = strip["content"] == " " and not strip["stop"] and all("String" in step["pattern"] for step in replaced)
    if not (kinds and _SENTENCEPIECE.fullmatch(kinds) and plain):
        raise ValueError(f"its tokeniser decodes by {kinds.strip() or 'no rule'}, which is not known here")
    fallback = "ByteFallback " in kinds
    parts = {token: _part(name, replaced, fallback) for token, name in names.items()}
    return TokenBytes(parts, byte_level=False, leading_spaces=strip["start"])


def _steps(decoder: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    """A decoder's steps, those of sequences in sequences included."""
    if decoder is None:
        return
    if decoder["type"] != "Sequence":
        yield decoder
        return
    for inner in decoder["decoders"]:
        yield from _steps(inner)


def _part(name: str, replaced: Sequence[Mapping[str, Any]], fallback: bool) -> Part:
    for step in replaced:
        name = name.replace(step["pattern"]["String"], step["content"])
    if fallback and _BYTE.fullmatch(name):
        return bytes([int(name[3:5], 16)])
    return name


def _alphabet() -> dict[str, int]:
    """Which character stands for which byte in a byte-level vocabulary: itself if it can be seen, else the next one
    from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_ALPHABET = _alphabet()


def _bytes_of(name: str) -> bytes:
    """Added tokens are written as they are, so those with other characters than the alphabet's are their own text."""
    if all(character in _ALPHABET for character in name):
        return bytes(_ALPHABET[character] for character in name)
    return name.encode()
