"""The headers of a request."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from subjects import codec, names
from subjects.errors import DeadlinePassed, InvalidField, Malformed, MLError, TooLarge
from subjects.message import Stream

MAX_HEADER_BYTES = 16_384
PING_MS = range(100, 60_001)
T = TypeVar("T")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_KNOWN = (
    *(names.CONTENT_TYPE, names.ACCEPT, names.REQUEST_ID, names.TIMEOUT_MS),
    *(names.STREAM, names.PING_MS, names.CALLER, names.TRACEPARENT),
)
_NAMES = {name.lower(): name for name in _KNOWN}


@dataclass(frozen=True, slots=True)
class RequestHeaders:
    """The headers of a request.

    stream: whether to answer with frames; auto: only if one message may not hold the reply; None: not said. ping_s:
    after how long without a frame to send a ping; None: never. caller_subject: where the caller listens as long as it
    wants the answer. fault: the error of the first header that could not be read; the others hold all the same.
    """

    request_id: str = ""
    request_type: str = names.JSON
    reply_type: str = names.JSON
    timeout_s: float | None = None
    stream: Stream | None = None
    ping_s: float | None = None
    traceparent: str | None = None
    caller_subject: str | None = None
    fault: MLError | None = None


def read_headers(headers: Mapping[str, str] | None, body: bytes, text: bool = False) -> RequestHeaders:
    """Read headers, whose names may be in any case. text: whether the reply has a text form."""
    if not headers:
        kind = codec.request_type(None, body)
        return RequestHeaders(uuid4().hex, kind, codec.reply_type(None, kind, text))
    known = {_NAMES[name.lower()]: value for name, value in headers.items() if name.lower() in _NAMES}
    faults: list[MLError] = []
    if (size := names.header_bytes(headers)) > MAX_HEADER_BYTES:
        faults.append(TooLarge(f"the request's headers take {size} bytes; the limit is {MAX_HEADER_BYTES}"))

    def read(default: T, reader: Callable[..., T], *arguments: Any) -> T:
        try:
            return reader(*arguments)
        except MLError as error:
            faults.append(error)
            return default

    kind = read(names.JSON, codec.request_type, known.get(names.CONTENT_TYPE), body)
    reply = read(names.JSON, codec.reply_type, known.get(names.ACCEPT), kind, text)
    return RequestHeaders(
        request_id=read(uuid4().hex, _request_id, known.get(names.REQUEST_ID)),
        request_type=kind,
        reply_type=reply,
        timeout_s=read(None, _timeout_s, known.get(names.TIMEOUT_MS)),
        stream=read(None, _stream, known.get(names.STREAM)),
        ping_s=read(None, _ping_s, known.get(names.PING_MS), reply),
        traceparent=known.get(names.TRACEPARENT),
        caller_subject=known.get(names.CALLER),
        fault=faults[0] if faults else None,
    )


def _request_id(value: str | None) -> str:
    if value is None:
        return uuid4().hex
    if not _REQUEST_ID.fullmatch(value):
        raise InvalidField(f"{names.REQUEST_ID} must be 1 to 128 of A-Z a-z 0-9 _ -, so that it fits into a subject")
    return value


def _timeout_s(value: str | None) -> float | None:
    if value is None:
        return None
    if not _WHOLE_NUMBER.fullmatch(value):
        raise Malformed(f"{names.TIMEOUT_MS} must be a whole number of milliseconds, not {value[:40]!r}")
    left_ms = int(value)
    if left_ms <= 0:
        raise DeadlinePassed(f"{names.TIMEOUT_MS} was {left_ms}: the deadline had passed before the request came")
    return min(left_ms / 1000, names.MAX_TIMEOUT_S)


def _stream(value: str | None) -> Stream | None:
    match value and value.lower():
        case None | "":
            return None
        case "false" | "0":
            return False
        case "true" | "1":
            return True
        case names.STREAM_AUTO:
            return "auto"
        case other:
            raise Malformed(f"{names.STREAM} must be true, false or {names.STREAM_AUTO}, not {other[:40]!r}")


def _ping_s(value: str | None, reply_type: str) -> float | None:
    if value is None:
        return None
    if not _WHOLE_NUMBER.fullmatch(value) or int(value) not in PING_MS:
        raise Malformed(f"{names.PING_MS} must be from {PING_MS[0]} to {PING_MS[-1]} milliseconds, not {value[:40]!r}")
    if reply_type == names.TEXT:
        raise Malformed(f"{names.PING_MS}: plain text has no pings; accept {names.JSON} or {names.MSGPACK}")
    return int(value) / 1000
