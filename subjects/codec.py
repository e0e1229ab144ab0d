"""Bodies to messages and back: JSON, MessagePack and text, chosen by header or by the first byte.

Knows content types and pydantic models; knows no subject, no connection and no model.
"""

import functools
import json
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, Protocol, TypeVar, get_args, runtime_checkable

import msgpack
import numpy as np
import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from . import names
from .errors import InvalidField, Malformed, MLError, NotAcceptable, TooLarge, UnsupportedType
from .vectors import little_endian

_ALIASES = {
    "application/json": names.JSON,
    "text/json": names.JSON,
    "application/msgpack": names.MSGPACK,
    "application/x-msgpack": names.MSGPACK,
    "application/vnd.msgpack": names.MSGPACK,
    "text/plain": names.TEXT,
}
_OFFERED = "application/json, application/msgpack"
_MAX_CONTAINERS = 1000
_MAX_JSON_CONTAINERS = 65536
"""Of JSON from anybody, which is read faster: pairs are maps, and clients send thousands of them in a message."""
_LOOKED_AT_BYTES = 2**18
_BESIDE_STRUCTURE = bytes(set(range(256)) - set(b'",[{'))
_MOST_EXPLAINED_BYTES = 65536
"""A JSON body up to that is read twice more, slowly, to say which string in it is no text."""
_MAX_NUMBERED_ENTRIES = 2048
_BOM = b"\xef\xbb\xbf"
_JSON_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*[{\[]")
_NO_TEXT = (("surrogatepass", "holds a lone surrogate"), ("surrogateescape", "is not UTF-8"))
"""How a body is read once more where a string in it is no text, and what is said of that string."""
_MOST_VALUES = 4 * 65536
_MOST_LEVELS = 4
"""So much of a body is looked at to find that string; no request is deeper. JSON of more values is not read at all."""
_UNREADABLE: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (UnicodeDecodeError, "a string in it is not UTF-8"),
    (msgpack.ExtraData, "something follows its one value"),
    ((msgpack.StackError, RecursionError), "it is nested too deep"),
    (msgpack.FormatError, "a byte in it begins no value"),
    (Exception, "it is cut short, or a value in it cannot be read"),
)
"""What msgpack raises, the special before the general, and what is said of it."""
_STRUCTS_AS_MAPS = "in Rust with rmp_serde::to_vec_named, in Go without UseArrayEncodedStructs and as_array"

MessageT = TypeVar("MessageT", bound=BaseModel)
T = TypeVar("T")


@runtime_checkable
class TextForm(Protocol):
    """A message that can also be sent as plain text."""

    def as_text(self) -> str:
        """The body."""

    def beside_text(self) -> dict[str, Any]:
        """What the body has no room for: fields for the header Ml-Result; empty for none."""


@functools.lru_cache(maxsize=256)
def _parse_content_type(header: str) -> str:
    media, _, parameters = header.partition(";")
    known = _ALIASES.get(media.strip().lower())
    if known is None:
        raise UnsupportedType(f"Content-Type {header[:80]!r} is not read here; send {_OFFERED} or text/plain")
    charset = parameters.lower().partition("charset=")[2].split(";")[0].strip(' "')
    if charset and charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedType(f"charset {charset[:40]!r} is not read here; send UTF-8")
    return known


def request_type(header: str | None, body: bytes) -> str:
    """The content type of a request: its header's, else what the first byte says.

    `{` or `[` is JSON, also behind a byte order mark and white space; a MessagePack map or array is MessagePack,
    anything else UTF-8 text. Raises UnsupportedType.
    """
    if header:
        return _parse_content_type(header)
    if _JSON_BEGINS.match(body):
        return names.JSON
    # A container with few entries, or one with its count in the next bytes; there, UTF-8 would have 0x80 or more.
    if body and (0x80 <= body[0] <= 0x9F or (0xDC <= body[0] <= 0xDF and body[1:2] == b"\0")):
        return names.MSGPACK
    return names.TEXT


@functools.lru_cache(maxsize=256)
def _parse_accept(header: str, text: bool) -> str | None:
    """The best offered type (None: whatever the request used). Order breaks ties of q."""
    offered = (names.JSON, names.MSGPACK, names.TEXT) if text else (names.JSON, names.MSGPACK)
    ranked: list[tuple[float, str | None]] = []
    for item in header.split(","):
        media, *parameters = (part.strip().lower() for part in item.split(";"))
        quality = next((_quality(p[2:]) for p in parameters if p.startswith("q=")), 1.0)
        if quality <= 0:
            continue
        if media in ("*/*", "application/*"):
            ranked.append((quality, None))
        elif _ALIASES.get(media) in offered:
            ranked.append((quality, _ALIASES[media]))
    if not ranked:
        raise NotAcceptable(f"Accept {header[:80]!r} asks for nothing that is sent here; accept {', '.join(offered)}")
    return max(ranked, key=lambda choice: choice[0])[1]


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def reply_type(accept: str | None, request: str, text: bool = False) -> str:
    """The content type of the reply: Accept's choice, else the request's own.

    text: whether the subject's replies have a text form; where they have none, text in is JSON out.
    Raises NotAcceptable.
    """
    chosen = _parse_accept(accept, text) if accept else None
    return chosen or (names.JSON if request == names.TEXT and not text else request)


def read(body: bytes, content_type: str, message: type[BaseModel], text_field: str | None = None) -> Any:
    """The fields of a request, not validated yet.

    text_field: the field that a text/plain body stands for; None where a bare text means nothing. An empty body is an
    empty map, unless that field is required, so that `nats req` can ask for everything with ''.
    Raises Malformed (unreadable), UnsupportedType (text not taken here) or InvalidField (a string that is no text).
    """
    if not body and (text_field is None or not message.model_fields[text_field].is_required()):
        return {}
    if content_type == names.TEXT:
        if text_field is None:
            raise UnsupportedType(f"plain text is not read on this subject; send {_OFFERED}")
        return {text_field: _read_text(body)}
    fields = loads(body, content_type, _MAX_CONTAINERS)
    if isinstance(fields, list) and content_type == names.MSGPACK:
        raise InvalidField(f"the body is an array; encode structs as maps: {_STRUCTS_AS_MAPS}; {_no_map(message)}")
    return fields


def validate(fields: Any, message: type[MessageT]) -> MessageT:
    """Plain values as a message. Raises TooLarge or InvalidField, naming the field."""
    # First, and no more than three: of a million unknown names pydantic would make a million faults.
    if foreign := list(islice(_foreign(fields, message), 3)):
        raise InvalidField("; ".join(foreign))
    try:
        return message.model_validate(fields)
    except ValidationError as error:
        raise _explain(error, message) from None


def loads(body: bytes, content_type: str, max_containers: int | None = None) -> Any:
    """A JSON or MessagePack body as plain Python values. Raises Malformed; InvalidField for a string that is no text.

    max_containers: how many lists and maps MessagePack from anybody may hold; absent: any number, as in replies, also
    in JSON.
    """
    if content_type == names.JSON:
        if max_containers is not None:
            _require_few(body)
        try:
            return orjson.loads(body.removeprefix(_BOM))
        except orjson.JSONDecodeError as error:
            if len(body) <= _MOST_EXPLAINED_BYTES:
                _require_text(lambda errors: json.loads(body.removeprefix(_BOM).decode(errors=errors)))
            raise Malformed(
                f"unreadable JSON: {error}; a text that starts with {{ or [ needs Content-Type: text/plain"
            ) from None

    def unpack(unicode_errors: str) -> Any:
        hooks = {} if max_containers is None else _Bounded(max_containers).hooks
        return msgpack.unpackb(body, unicode_errors=unicode_errors, **hooks)

    try:
        return unpack("strict")
    except MLError:
        raise
    except Exception as error:  # msgpack raises a dozen unrelated types on garbage
        if isinstance(error, UnicodeDecodeError):
            _require_text(unpack)
        reason = next(reason for kinds, reason in _UNREADABLE if isinstance(error, kinds))
        raise Malformed(f"unreadable MessagePack: {reason}; set Content-Type if it is something else") from None


def _require_few(body: bytes) -> None:
    """Raises Malformed for JSON of so many lists, maps or values that the event loop stands still while it is read.

    Text may hold any number of brackets, braces and commas, as code does: where there are many, those in strings do
    not count.
    """
    if body.count(b"[") + body.count(b"{") <= _MAX_JSON_CONTAINERS and body.count(b",") < _MOST_VALUES:
        return
    unescaped = body.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
    commas = containers = quoted = 0
    for at in range(0, len(body), _LOOKED_AT_BYTES):
        marks = np.frombuffer(unescaped[at : at + _LOOKED_AT_BYTES].translate(None, _BESIDE_STRUCTURE), np.uint8)
        quotes = marks == ord('"')
        outside = marks[(np.cumsum(quotes, dtype=np.uint8) + quoted) % 2 == 0]
        quoted = (quoted + int(np.count_nonzero(quotes))) % 2
        commas += int(np.count_nonzero(outside == ord(",")))
        containers += int(np.count_nonzero(outside > ord(",")))
        if containers > _MAX_JSON_CONTAINERS:
            raise _too_many(_MAX_JSON_CONTAINERS)
        if commas >= _MOST_VALUES:
            raise Malformed(f"the message has more than {_MOST_VALUES} values; no request needs that")


def _too_many(containers: int) -> Malformed:
    return Malformed(f"the message has more than {containers} lists and maps; no request needs that")


def _require_text(read: Callable[[str], Any]) -> None:
    """Raises InvalidField for the first string of a body that is no text; nothing where something else is wrong.

    read: the body, with what bytes do that are no text (see bytes.decode).
    """
    for unicode_errors, fault in _NO_TEXT:
        try:
            fields = read(unicode_errors)
        except (ValueError, RecursionError, MLError):
            continue
        values = islice(_values(fields, ()), _MOST_VALUES)
        if path := next((path for path, value in values if not _is_text(value)), None):
            where = ".".join(str(part)[:64] for part in path).encode(errors="backslashreplace").decode()
            raise InvalidField(f"field '{where}' {fault}; send valid Unicode")


def _values(container: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The keys and values in a map or list and in those in it, each with the path to it."""
    entries: Iterable[tuple[Any, Any]] = ()
    if isinstance(container, dict):
        entries = container.items()
    elif isinstance(container, list):
        entries = enumerate(container)
    for key, value in entries:
        inner = (*path, key)
        yield inner, key
        yield inner, value
        if len(inner) < _MOST_LEVELS:
            yield from _values(value, inner)


def _is_text(value: Any) -> bool:
    try:
        return not isinstance(value, str) or value.encode() is not None
    except UnicodeEncodeError:
        return False


class _Bounded:
    """Refuses a message of a great many lists or maps: a byte of it can become fifty in memory.

    Keys are strings, or the whole numbers of a map so small that it is fast whichever they are.
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


def _read_text(body: bytes) -> str:
    try:
        return body.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise Malformed(
            f"the body is not UTF-8 text (byte {error.start}); set Content-Type if it is something else"
        ) from None


def dumps(message: BaseModel | Mapping[str, Any], content_type: str) -> bytes:
    """A message as bytes. Fields that are None are left out, and so is an `encoding_format` of float32.

    Plain text is for messages with a text form. Arrays become little-endian bytes in MessagePack and numbers in JSON;
    where `encoding_format` is base64, base64 of those bytes in both; where it is array, in both numbers.
    """
    if content_type == names.TEXT:
        return _text_form(message).as_text().encode()
    fields = _fields(message)
    encoding_format = fields.get("encoding_format")
    if encoding_format == "float32":
        del fields["encoding_format"]
    if content_type == names.MSGPACK:
        form = _FORMS.get(str(encoding_format), _in_bytes)
        return msgpack.packb(fields, default=form, use_single_float=form is _in_numbers)  # type: ignore[no-any-return]
    if encoding_format == "base64":
        return orjson.dumps(fields, default=_in_base64)
    return orjson.dumps(fields, default=_in_numbers, option=orjson.OPT_SERIALIZE_NUMPY)


def text_headers(message: BaseModel) -> dict[str, str]:
    """The headers that go with a message in plain text."""
    facts = _text_form(message).beside_text()
    return {names.RESULT: json.dumps(facts, default=_fields)} if facts else {}


def dumps_error(error: MLError, request_id: str, content_type: str) -> bytes:
    """The body of an error reply; in plain text one line."""
    if content_type == names.TEXT:
        return f"error {error.code}: {error.message}\n".encode()
    return dumps(error.body(request_id), content_type)


def _text_form(message: BaseModel | Mapping[str, Any]) -> TextForm:
    if not isinstance(message, TextForm):
        raise TypeError(f"{type(message).__name__} has no text form")
    return message


def _fields(message: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    items = message.items() if isinstance(message, Mapping) else message
    return {name: value for name, value in items if value is not None}


def _plain(value: Any) -> Any:
    # A time as in JSON: not every client reads MessagePack's own.
    return value.isoformat() if isinstance(value, datetime) else _fields(value)


def _in_bytes(value: Any) -> Any:
    return little_endian(value) if isinstance(value, np.ndarray) else _plain(value)


def _in_base64(value: Any) -> Any:
    return b64encode(little_endian(value)).decode() if isinstance(value, np.ndarray) else _plain(value)


def _in_numbers(value: Any) -> Any:
    # orjson writes contiguous arrays itself and hands over only the others.
    return value.tolist() if isinstance(value, np.ndarray) else _plain(value)


_FORMS = {"base64": _in_base64, "array": _in_numbers}
"""How vectors lie in MessagePack where not as bytes, by encoding_format."""


def _explain(error: ValidationError, message: type[BaseModel]) -> MLError:
    """The first three faults, each by the name of its field."""
    faults = error.errors(include_url=False, include_context=True, include_input=False)
    text = "; ".join(_fault(fault, message) for fault in faults[:3])
    if len(faults) > 3:
        text += f"; and {len(faults) - 3} more"
    too_large = {"string_too_long", "too_long", "bytes_too_long"}
    return TooLarge(text) if faults[0]["type"] in too_large else InvalidField(text)


def _foreign(fields: Any, message: type[BaseModel], path: str = "") -> Iterator[str]:
    """Each name that a message has no field for, at any depth, with the fields that it has."""
    if not isinstance(fields, dict):
        return
    for name, value in fields.items():
        if name not in message.model_fields:
            yield f"unknown field {path + str(name)[:64]!r}; the fields are {', '.join(message.model_fields)}"
        elif (inner := _inner(message, name)) and isinstance(value, list):
            for place, entry in enumerate(value):
                yield from _foreign(entry, inner, f"{path}{name}.{place}.")
        elif inner:
            yield from _foreign(value, inner, f"{path}{name}.")


@functools.cache
def _inner(message: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The message that a field holds, one or a list of them."""
    return next(_messages_in(message.model_fields[field].annotation), None)


def _messages_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _messages_in(argument)


def _no_map(message: type[BaseModel]) -> str:
    return f"the body must be a map of fields: {', '.join(message.model_fields)}"


def _fault(fault: ErrorDetails, message: type[BaseModel]) -> str:
    where = ".".join(str(part)[:64] for part in fault["loc"])
    if fault["type"] == "missing":
        return f"field {where!r} is missing"
    if fault["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"field {where!r} must be a map" if where else _no_map(message)
    if fault["type"] == "string_unicode":
        return f"field {where!r} holds a lone surrogate; send valid Unicode"
    reason = fault["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return f"field {where!r}: {reason}" if where else reason
