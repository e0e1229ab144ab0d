"""One request in flight: what its headers asked, by when, and its single terminal answer.

Knows the wire and the connection; knows no handler and no model.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import uuid4

from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import BaseModel

from subjects import codec, names, stream
from subjects.errors import Cancelled, DeadlinePassed, InvalidField, Malformed, MLError, TooLarge

MAX_HEADER_BYTES = 16_384
PING_MS = range(100, 60_001)
MAX_UNSENT_BYTES = 1_048_576
"""How much may wait for the server to read it before a stream waits too: nats-py waits for ten seconds and goes on."""
T = TypeVar("T")
_ONE_REPLY: bool | None = False
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")
_NAMES = {
    name.lower(): name
    for name in (
        names.CONTENT_TYPE,
        names.ACCEPT,
        names.REQUEST_ID,
        names.TIMEOUT_MS,
        names.STREAM,
        names.PING_MS,
        names.TRACEPARENT,
    )
}


@dataclass(frozen=True, slots=True)
class Asked:
    """The headers of a request. fault: the first that could not be read; the others hold all the same.

    stream: whether to answer with frames; None: only where one message may not hold the reply. ping_s: after how long
    without a frame to send a ping; None: never.
    """

    request_id: str = ""
    request_type: str = names.JSON
    reply_type: str = names.JSON
    timeout_s: float | None = None
    stream: bool | None = False
    ping_s: float | None = None
    traceparent: str | None = None
    fault: MLError | None = None


def read_headers(headers: Mapping[str, str] | None, body: bytes, text: bool = False) -> Asked:
    """Headers as the design names them, names in any case. text: whether the replies have a text form."""
    if not headers:
        kind = codec.request_type(None, body)
        return Asked(uuid4().hex, kind, codec.reply_type(None, kind, text))
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
    return Asked(
        request_id=read(uuid4().hex, _request_id, known.get(names.REQUEST_ID)),
        request_type=kind,
        reply_type=reply,
        timeout_s=read(None, _timeout_s, known.get(names.TIMEOUT_MS)),
        stream=read(_ONE_REPLY, _stream, known.get(names.STREAM)),
        ping_s=read(None, _ping_s, known.get(names.PING_MS), reply),
        traceparent=known.get(names.TRACEPARENT),
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


def _stream(value: str | None) -> bool | None:
    match (value or "false").lower():
        case "false" | "0":
            return False
        case "true" | "1":
            return True
        case names.STREAM_AUTO:
            return None
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


class Call:
    """A request, from its arrival to exactly one terminal answer.

    deadline: loop time in seconds. ended_by: the error to answer with when the task is cancelled from outside.
    framed: whether the answer is a stream of frames. on_cancel: set by a handler whose stream then ends by itself.
    """

    __slots__ = (
        "_nc",
        "answered",
        "asked",
        "body",
        "closed",
        "deadline",
        "ended_by",
        "framed",
        "frames",
        "large",
        "on_cancel",
        "received",
        "reply",
        "route",
        "running",
        "serial",
        "size",
        "task",
    )

    def __init__(
        self, nc: Client, route: str, msg: Msg, serial: int, default_timeout_s: float, text: bool = False
    ) -> None:
        self._nc = nc
        self.route = route
        self.serial = serial
        self.reply = msg.reply
        self.body: bytes = msg.data
        self.size = len(msg.data)
        self.asked = read_headers(msg.headers, msg.data, text)
        self.received = asyncio.get_running_loop().time()
        self.deadline = self.received + (self.asked.timeout_s or default_timeout_s)
        self.task: asyncio.Task[None] | None = None
        self.ended_by: MLError | None = None
        self.answered: MLError | bool = False
        self.running = False
        self.closed = False
        self.framed = bool(self.asked.stream)
        self.frames = 0
        self.large = False
        self.on_cancel: Callable[[], None] | None = None

    @property
    def reply_limit(self) -> int:
        """Bytes that a reply's body may take, with room for its headers."""
        return int(self._nc.max_payload) - 1024

    def take_body(self) -> bytes:
        """The request's body, which is not kept: a large one would lie here beside what was read from it."""
        body, self.body = self.body, b""
        return body

    def choose_form(self, too_large: TooLarge | None) -> None:
        """Settle between one reply and frames, before any work.

        too_large: why one reply may not do. Raised where frames were not allowed.
        """
        if self.asked.stream is None:
            self.framed = too_large is not None
        elif too_large and not self.framed:
            raise too_large

    def cancel(self) -> None:
        """The caller has had enough: a stream may say how far it came, anything else ends as cancelled."""
        if self.framed and self.on_cancel:
            self.on_cancel()
        else:
            self.end(Cancelled("the request was cancelled"))

    def end(self, reason: MLError) -> None:
        """Stop the work; the caller gets the reason unless the answer is already out."""
        if self.ended_by is None:
            self.ended_by = reason
            if self.task and self.running:  # a task cancelled before its first step would never answer
                self.task.cancel()

    async def answer(self, message: BaseModel) -> None:
        """Send the one reply. Raises TooLarge if it does not fit a message, sending nothing."""
        if self.large:
            body = await asyncio.to_thread(codec.dumps, message, self.asked.reply_type)
        else:
            body = codec.dumps(message, self.asked.reply_type)
        headers = self._headers(message)
        self._check_size(body, headers)
        self.answered = True
        await self._publish(body, headers)

    async def send(self, event: str, message: BaseModel, probe: str = "") -> None:
        """Send the next frame of a stream, or the reply where there is to be only that.

        probe: a subject that hears of it when nobody listens any more.
        """
        if not self.framed:
            await self.answer(message)
            return
        body = codec.dumps(message.model_copy(update={"seq": self.frames}), self.asked.reply_type)
        headers = self._headers(message) | stream.frame_headers(event, self.frames)
        self._check_size(body, headers)
        await self._room()
        self.answered = event == stream.DONE
        self.frames += 1
        await self._publish(body, headers, probe)
        self._check_still_wanted()

    async def end_stream(self) -> None:
        """The sentinel: an empty body and no headers."""
        self.closed = True
        await self._publish(stream.SENTINEL, None)

    async def fail(self, error: MLError) -> None:
        """Answer with an error, unless an answer is already out; a stream gets its sentinel either way."""
        if not self.answered:
            self.answered = error
            headers = self._headers() | error.headers()
            if self.framed:
                headers |= stream.frame_headers(stream.ERROR, self.frames)
                self.frames += 1
            await self._publish(codec.dumps_error(error, self.asked.request_id, self.asked.reply_type), headers)
        if self.framed and not self.closed:
            await self.end_stream()

    def _headers(self, message: BaseModel | None = None) -> dict[str, str]:
        headers = {names.CONTENT_TYPE: self.asked.reply_type, names.REQUEST_ID: self.asked.request_id}
        if message is not None and self.asked.reply_type == names.TEXT:
            headers |= codec.text_headers(message)
        return headers

    async def _room(self) -> None:
        """Return once the server has read most of what was sent to it, or the connection is lost.

        Not by a flush: one that takes too long leaves a PONG behind that breaks the connection (nats-py 2.16).
        """
        while self._nc.is_connected and self._nc.pending_data_size > MAX_UNSENT_BYTES:
            self._check_still_wanted()
            await self._nc._flush_pending(force_flush=True)

    def _check_still_wanted(self) -> None:
        """Raise what ended the call meanwhile: nats-py swallows a cancellation that comes while it flushes."""
        if self.answered:
            return
        if self.ended_by is not None:
            raise self.ended_by
        if asyncio.get_running_loop().time() > self.deadline:
            raise DeadlinePassed("the deadline passed before the stream was through")

    def _check_size(self, body: bytes, headers: dict[str, str]) -> None:
        """The server counts headers too, and cuts off who sends too much."""
        if names.header_bytes(headers) + len(body) > self._nc.max_payload:
            raise TooLarge(
                f"the reply would take {len(body)} bytes and a message holds {self.reply_limit}; "
                f"ask for less, for {names.MSGPACK}, or where the subject has one for a stream, with {names.STREAM}: "
                f"true or {names.STREAM_AUTO}"
            )

    async def _publish(self, body: bytes, headers: dict[str, Any] | None, probe: str = "") -> None:
        await self._nc.publish(self.reply, body, reply=probe, headers=headers)
