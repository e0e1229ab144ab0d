"""Limits for bodies from untrusted senders: few enough lists and maps to read them fast, and strings that are text."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from .errors import InvalidField, Malformed, MLError

MAX_JSON_CONTAINERS = 65536
"""Of JSON, which is read faster than MessagePack: pairs are maps, and clients send thousands of them in a message."""
MAX_JSON_VALUES = 4 * 65536
_MAX_NUMBERED_ENTRIES = 2048
_CHUNK_BYTES = 2**18
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'",[{'))
_MAX_LEVELS = 4
"""No request is nested deeper, so a string that is not text is searched for down to this level."""
_TEXT_FAULTS = (("surrogatepass", "holds a lone surrogate"), ("surrogateescape", "is not UTF-8"))
"""The error handlers with which a body is read again to find the string that is not text, and what is wrong with it."""
T = TypeVar("T")


def require_few(body: bytes) -> None:
    """Raises Malformed for JSON with so many lists, maps or values that reading it would block the event loop.

    Text such as code may hold any number of brackets, braces and commas: those inside strings do not count.
    """
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_CONTAINERS and body.count(b",") < MAX_JSON_VALUES:
        return
    unescaped = body.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
    commas = containers = quoted = 0
    for at in range(0, len(body), _CHUNK_BYTES):
        marks = np.frombuffer(unescaped[at : at + _CHUNK_BYTES].translate(None, _NOT_STRUCTURE), np.uint8)
        quotes = marks == ord('"')
        outside = marks[(np.cumsum(quotes, dtype=np.uint8) + quoted) % 2 == 0]
        quoted = (quoted + int(np.count_nonzero(quotes))) % 2
        commas += int(np.count_nonzero(outside == ord(",")))
        containers += int(np.count_nonzero(outside > ord(",")))
        if containers > MAX_JSON_CONTAINERS:
            raise _too_many(MAX_JSON_CONTAINERS)
        if commas >= MAX_JSON_VALUES:
            raise Malformed(f"the message has more than {MAX_JSON_VALUES} values; send less, or MessagePack")


def _too_many(containers: int) -> Malformed:
    return Malformed(f"the message has more than {containers} lists and maps; no request needs that")


def require_text(read: Callable[[str], Any]) -> None:
    """Raises InvalidField for the first string of a body that is not text; returns if something else is wrong.

    read: reads the body with an error handler of bytes.decode.
    """
    for unicode_errors, fault in _TEXT_FAULTS:
        try:
            fields = read(unicode_errors)
        except (ValueError, RecursionError, MLError):
            continue
        values = islice(_values(fields, ()), MAX_JSON_VALUES)
        if path := next((path for path, value in values if not _is_text(value)), None):
            where = ".".join(str(part)[:64] for part in path).encode(errors="backslashreplace").decode()
            raise InvalidField(f"field '{where}' {fault}; send valid Unicode")


def _values(container: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The keys and values of a map or list, and of the maps and lists inside it, each with its path."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(container, dict):
        entries = container.items()
    elif isinstance(container, list):
        entries = enumerate(container)
    for key, value in entries:
        inner = (*path, key)
        yield inner, key
        yield inner, value
        if len(inner) < _MAX_LEVELS:
            yield from _values(value, inner)


def _is_text(value: Any) -> bool:
    try:
        return not isinstance(value, str) or value.encode() is not None
    except UnicodeEncodeError:
        return False


class Bounded:
    """Hooks for msgpack that refuse a message with too many lists and maps: one byte of it can take fifty in memory.

    Keys must be strings, or whole numbers if the map is small: chosen numbers can make a large map slow.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen = 0
        self.hooks = {"list_hook": self._count, "object_pairs_hook": self._map, "strict_map_key": False}

    def _map(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        numbered = sum(isinstance(key, int) for key, _ in pairs)
        if numbered > _MAX_NUMBERED_ENTRIES or not all(isinstance(key, str | int) for key, _ in pairs):
            raise Malformed(f"the keys of a map must be strings, or at most {_MAX_NUMBERED_ENTRIES} whole numbers")
        return dict(self._count(pairs))

    def _count(self, container: T) -> T:
        self._seen += 1
        if self._seen > self._most:
            raise _too_many(self._most)
        return container
