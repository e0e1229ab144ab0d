"""Bodies to messages and back, in JSON, MessagePack or text: the header or the first byte of a body says which."""

import functools
import json
import re
from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import msgpack
import numpy as np
import orjson
from pydantic import BaseModel

from . import names
from .errors import InvalidField, Malformed, MLError, NotAcceptable, UnsupportedType
from .untrusted import Bounded, require_few, require_text
from .validation import map_expected
from .validation import validate as validate
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
_MAX_CONTAINERS = 4096
_MAX_EXPLAINED_BYTES = 65536
"""A JSON body up to this size is read twice more, slowly, to say which string in it is not text."""
_BOM = b"\xef\xbb\xbf"
_JSON_BEGINS = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*[{\[]")
_UNREADABLE: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (UnicodeDecodeError, "a string in it is not UTF-8"),
    (msgpack.ExtraData, "something follows its one value"),
    ((msgpack.StackError, RecursionError), "it is nested too deep"),
    (msgpack.FormatError, "a byte in it begins no value"),
    (Exception, "it is cut short, or a value in it cannot be read"),
)
"""The exceptions of msgpack, special before general, and how the error reply explains them."""
_STRUCTS_AS_MAPS = "in Rust with rmp_serde::to_vec_named, in Go without UseArrayEncodedStructs and as_array"


@runtime_checkable
class TextForm(Protocol):
    """A message that can also be sent as plain text."""

    def as_text(self) -> str:
        """The body."""

    def beside_text(self) -> dict[str, Any]:
        """The fields that go into the header Ml-Result instead; empty for none."""


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
    """The content type of a request: that of the header, or else the one that the first byte shows.

    `{` or `[` is JSON, also after a byte order mark and white space; a MessagePack map or array is MessagePack,
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
    """The best type that is offered; None: the type of the request. Of equal q the first one counts."""
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
    """The content type of the reply: the choice of Accept, or else the type of the request.

    text: whether replies on the subject have a text form. Without one, a request in text gets a reply in JSON.
    Raises NotAcceptable.
    """
    chosen = _parse_accept(accept, text) if accept else None
    return chosen or (names.JSON if request == names.TEXT and not text else request)


def read(body: bytes, content_type: str, message: type[BaseModel], text_field: str | None = None) -> Any:
    """The fields of a request, before validation.

    text_field: the field that a text/plain body stands for; None: plain text is refused. An empty body is an empty map
    unless that field is required, so that `nats req` can ask for everything with ''.
    Raises Malformed (unreadable), UnsupportedType (plain text refused) or InvalidField (a string that is not text).
    """
    if not body and (text_field is None or not message.model_fields[text_field].is_required()):
        return {}
    if content_type == names.TEXT:
        if text_field is None:
            raise UnsupportedType(f"plain text is not read on this subject; send {_OFFERED}")
        return {text_field: _read_text(body)}
    fields = loads(body, content_type, _MAX_CONTAINERS)
    if isinstance(fields, list) and content_type == names.MSGPACK:
        raise InvalidField(f"the body is an array; encode structs as maps: {_STRUCTS_AS_MAPS}; {map_expected(message)}")
    return fields


def loads(body: bytes, content_type: str, max_containers: int | None = None) -> Any:
    """A JSON or MessagePack body as plain Python values.

    max_containers: the limit for lists and maps in MessagePack from an untrusted sender; JSON has a limit of its own.
    None: no limit, as for replies. Raises Malformed, or InvalidField for a string that is not text.
    """
    if content_type == names.JSON:
        if max_containers is not None:
            require_few(body)
        try:
            return orjson.loads(body.removeprefix(_BOM))
        except orjson.JSONDecodeError as error:
            if len(body) <= _MAX_EXPLAINED_BYTES:
                require_text(lambda errors: json.loads(body.removeprefix(_BOM).decode(errors=errors)))
            raise Malformed(
                f"unreadable JSON: {error}; a text that starts with {{ or [ needs Content-Type: text/plain"
            ) from None

    def unpack(unicode_errors: str) -> Any:
        hooks = {} if max_containers is None else Bounded(max_containers).hooks
        return msgpack.unpackb(body, unicode_errors=unicode_errors, **hooks)

    try:
        return unpack("strict")
    except MLError:
        raise
    except Exception as error:  # msgpack raises a dozen unrelated types on garbage
        if isinstance(error, UnicodeDecodeError):
            require_text(unpack)
        reason = next(reason for kinds, reason in _UNREADABLE if isinstance(error, kinds))
        raise Malformed(f"unreadable MessagePack: {reason}; set Content-Type if it is something else") from None


def _read_text(body: bytes) -> str:
    try:
        return body.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise Malformed(
            f"the body is not UTF-8 text (byte {error.start}); set Content-Type if it is something else"
        ) from None


def dumps(message: BaseModel | Mapping[str, Any], content_type: str) -> bytes:
    """A message as bytes. Fields that are None are left out, and so is an `encoding_format` of float32.

    Plain text is for messages with a text form. Arrays become little-endian bytes in MessagePack and numbers in JSON.
    With `encoding_format` base64 they become base64 of those bytes in both, with array they become numbers in both.
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
    """The headers that belong to a message in plain text."""
    facts = _text_form(message).beside_text()
    return {names.RESULT: json.dumps(facts, default=_fields)} if facts else {}


def dumps_error(error: MLError, request_id: str, content_type: str) -> bytes:
    """The body of an error reply; in plain text it is one line."""
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
    # A time is a string, as in JSON: not every client reads MessagePack's timestamps.
    return value.isoformat() if isinstance(value, datetime) else _fields(value)


def _in_bytes(value: Any) -> Any:
    return little_endian(value) if isinstance(value, np.ndarray) else _plain(value)


def _in_base64(value: Any) -> Any:
    return b64encode(little_endian(value)).decode() if isinstance(value, np.ndarray) else _plain(value)


def _in_numbers(value: Any) -> Any:
    # orjson writes contiguous arrays itself and hands over only the others.
    return value.tolist() if isinstance(value, np.ndarray) else _plain(value)


_FORMS = {"base64": _in_base64, "array": _in_numbers}
"""The encoding formats whose vectors are not bytes in MessagePack."""
