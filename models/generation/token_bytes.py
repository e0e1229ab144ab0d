"""The text or bytes of each token id, and the incremental decoding of their sequence to characters.

Does what the decoders of SentencePiece-BPE and of byte-level BPE do, token by token instead of all at once.
"""

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tokenizers import Tokenizer

Part: TypeAlias = str | bytes
"""What a token adds to a text: characters, or bytes of some."""

UNREADABLE = "\N{REPLACEMENT CHARACTER}"
_SENTENCEPIECE = re.compile("(Replace )*(ByteFallback )?(Fuse (Strip )?)?")
_BYTE = re.compile("<0x[+0-9A-Fa-f][0-9A-Fa-f]>")  # the library accepts a sign as a digit


class ByteLevelDecoder:
    """Decodes parts that are all bytes; replaces unreadable ones as Unicode recommends, one U+FFFD per maximal part.

    push returns the characters that are final, flush the rest. pending: whole characters that flush would return, and
    that more parts may change.
    """

    __slots__ = ("_decoder",)
    pending = ""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, part: Part) -> str:
        assert isinstance(part, bytes)
        return self._decoder.decode(part)

    def flush(self) -> str:
        return self._decoder.decode(b"", True)


class ByteFallbackDecoder:
    """Decodes text with runs of bytes in it. A run that is not UTF-8 as a whole becomes one U+FFFD per byte.

    A run is therefore held until it ends. push, flush and pending: as in ByteLevelDecoder.
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
    def pending(self) -> str:
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


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """parts: of each token except the special ones, which have no text. byte_level: whether all parts are bytes; else
    bytes only stand in for single characters. leading_spaces: dropped at the start of a text, at most this many."""

    parts: Mapping[int, Part]
    byte_level: bool
    leading_spaces: int = 0

    def new_decoder(self) -> ByteLevelDecoder | ByteFallbackDecoder:
        return ByteLevelDecoder() if self.byte_level else ByteFallbackDecoder()


def read_token_bytes(backend: Tokenizer) -> TokenBytes:
    """Derive the parts from a tokeniser's decoder. Raises ValueError, with a clause, if its kind is not supported."""
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
    """A decoder's steps, those of nested sequences included."""
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
    """The byte that each character of a byte-level vocabulary stands for: its own code if visible, else the characters
    from 256 on in turn."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(byte): byte for byte in visible} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_ALPHABET = _alphabet()


def _bytes_of(name: str) -> bytes:
    """A name with characters outside the alphabet is an added token's, and stands for itself."""
    if all(character in _ALPHABET for character in name):
        return bytes(_ALPHABET[character] for character in name)
    return name.encode()
