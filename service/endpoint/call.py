"""One request in flight: its headers, its deadline, and its single terminal answer."""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import BaseModel

from subjects import codec, names, stream
from subjects.errors import Cancelled, DeadlinePassed, InvalidField, MLError, TooLarge
from subjects.names import FinishReason

from ..bus.client import BusClient
from .headers import RequestHeaders, read_headers

MAX_UNSENT_BYTES = 1_048_576
"""How much may wait in nats-py's buffer before a stream waits too: nats-py itself waits ten seconds and goes on."""
MAX_KEPT_BYTES = 4 * 2**20
"""How much may be kept for the time after a lost connection before an answer waits."""
LASTING_PING_S = 5.0
"""Without a frame for this long a lasting stream sends a ping, unless the caller names a time."""
LEAST_PING_S = 1.0
"""Pings of a lasting stream come no faster, whatever the caller names: it goes on for hours."""


class ReplyLost(Exception):
    """An answer could not be published; the caller cannot be told."""


@dataclass(slots=True, eq=False)
class Call:
    """A request, from its arrival to exactly one terminal answer.

    deadline: loop time in seconds. ended_by: the error to answer with when the task is cancelled from outside. framed:
    whether the answer is a stream of frames. timer: cancels the task at the deadline, once it runs. large: whether the
    next message takes long to encode. denied: whether the server refuses the answers. caller: who takes turns with
    others. caller_subject: where to ask whether the caller still waits; if empty, the frames themselves ask.
    no_listener_subject: where the server says that nobody listens; nobody can guess it. worker: our id, where others
    answer too.
    """

    nc: BusClient
    route: str
    msg: InitVar[Msg]
    serial: int
    default_timeout_s: InitVar[float]
    has_text_reply: InitVar[bool] = False
    headers: RequestHeaders = field(init=False)
    reply: str = field(init=False)
    body: bytes = field(init=False)
    size: int = field(init=False)
    received: float = field(init=False)
    deadline: float = field(init=False)
    framed: bool = field(init=False)
    task: asyncio.Task[None] | None = None
    timer: asyncio.Timeout | None = None
    running: bool = False
    ended_by: MLError | None = None
    answered: MLError | bool = False
    denied: bool = False
    caller: str = ""
    caller_subject: str = ""
    no_listener_subject: str = ""
    worker: str = ""
    frames: int = 0
    large: bool = False
    _wind_up: Callable[[FinishReason], None] | None = None

    def __post_init__(self, msg: Msg, default_timeout_s: float, has_text_reply: bool) -> None:
        self.headers = read_headers(msg.headers, msg.data, has_text_reply)
        self.reply, self.body, self.size = msg.reply, msg.data, len(msg.data)
        self.received = asyncio.get_running_loop().time()
        self.deadline = self.received + (self.headers.timeout_s or default_timeout_s)
        self.framed = self.headers.stream is True

    @property
    def reply_limit(self) -> int:
        """Bytes that a reply's body may take, less what its headers may."""
        return int(self.nc.max_payload) - 1024

    @property
    def lasting(self) -> bool:
        """Whether it has no deadline; see `make_lasting`."""
        return self.deadline == math.inf

    def make_lasting(self) -> None:
        """Make it a stream of frames and pings without a deadline, whatever the headers say."""
        self.deadline = math.inf
        ping_s = max(self.headers.ping_s or LASTING_PING_S, LEAST_PING_S)
        self.headers = replace(self.headers, stream=True, ping_s=ping_s)
        self.framed = True

    def take_body(self) -> bytes:
        """The request's body, which is not kept beside what is read from it."""
        body, self.body = self.body, b""
        return body

    def take_stream(self, fields: Any) -> None:
        """Follow the body's `stream`, which means the same as the header. Raises InvalidField if the two differ.

        fields: not validated yet, so that a validation error too comes in the requested form.
        """
        stream = fields.get("stream") if isinstance(fields, dict) else None
        if not isinstance(stream, bool) and stream != names.STREAM_AUTO:
            return
        if self.headers.stream not in (None, stream):
            raise InvalidField(f"field 'stream' and the header {names.STREAM} differ; send one, or both alike")
        self.headers = replace(self.headers, stream=stream)
        self.framed = stream is True

    def choose_form(self, too_large: TooLarge | None) -> None:
        """Decide between one reply and frames, before any work.

        too_large: why one reply may not fit; raised if frames are not allowed.
        """
        if self.headers.stream == names.STREAM_AUTO:
            self.framed = too_large is not None
        elif too_large and not self.framed:
            raise too_large

    def cancel(self) -> None:
        """End on the caller's request: a stream may finish with what it has, anything else ends as cancelled."""
        if self._wind_up:
            self._wind_up("cancelled")
        else:
            self.end(Cancelled("the request was cancelled"))

    @contextmanager
    def winding_up(self, wind_up: Callable[[FinishReason], None]) -> Iterator[None]:
        """While the context is open, a stream that is cancelled or at its deadline ends by itself.

        wind_up: called with the reason. For its end a stream may pass its deadline, by names.WIND_UP_S.
        """
        if not self.framed:
            yield
            return
        self._wind_up = wind_up
        expiry = asyncio.get_running_loop().call_at(self.deadline, self._expire)
        self.deadline += names.WIND_UP_S
        if self.timer is not None:
            self.timer.reschedule(self.deadline)
        try:
            yield
        finally:
            expiry.cancel()
            self._wind_up = None

    def _expire(self) -> None:
        if self.frames and self._wind_up:
            self._wind_up("timeout")
        else:
            self.end(DeadlinePassed("the deadline passed before the text began"))

    def end(self, reason: MLError) -> None:
        """Stop the work; the caller gets the reason unless it has its answer already."""
        if self.ended_by is None:
            self.ended_by = reason
            if self.task and self.running:  # a task cancelled before its first step would never answer
                self.task.cancel()

    def deny(self) -> None:
        """Stop the work and send no more: the server has refused an answer."""
        self.denied = True
        self.end(Cancelled("the server does not let this worker publish to the reply subject"))

    async def answer(self, message: BaseModel) -> None:
        """Send the one reply. Raises TooLarge, sending nothing, if it does not fit a message."""
        body, headers = await self._encoded(message), self._reply_headers(message)
        self._check_size(body, headers)
        await self._wait_for_space()
        self.answered = True
        await self._publish(body, headers)

    async def send(self, event: str, message: BaseModel, asks: bool = False) -> None:
        """Send the next frame of a stream, or the one reply.

        asks: whether to have the server say if nobody listens any more.
        """
        if not self.framed:
            await self.answer(message)
            return
        body = await self._encoded(message.model_copy(update={"seq": self.frames}))
        headers = self._reply_headers(message) | stream.frame_headers(event, self.frames)
        self._check_size(body, headers)
        await self._wait_for_space()
        self.answered = event == stream.DONE
        self.frames += 1
        await self._publish(body, headers, self.no_listener_subject if asks and not self.caller_subject else "")
        if asks and self.caller_subject:
            await self.ask_caller()
        self._check_still_wanted()

    async def ask_caller(self) -> None:
        """Ask on `caller_subject`; if nobody is there, the server says so on `no_listener_subject`."""
        headers = {names.REQUEST_ID: self.headers.request_id, names.EVENT: stream.STILL_THERE}
        with _publishing():
            await self.nc.publish(
                self.caller_subject, stream.STILL_THERE.encode(), reply=self.no_listener_subject, headers=headers
            )

    async def close(self) -> None:
        """Send the sentinel, an empty body without headers, if frames were requested or allowed.

        Also after one reply: a caller that is ready for frames does not know that no more come.
        """
        if self.headers.stream:
            await self._publish(stream.SENTINEL, None)

    async def fail(self, error: MLError) -> None:
        """Answer with an error, unless there is an answer already."""
        if not self.answered:
            self.answered = error
            headers = self._reply_headers() | error.headers()
            if self.framed:
                headers |= stream.frame_headers(stream.ERROR, self.frames)
                self.frames += 1
            await self._publish(codec.dumps_error(error, self.headers.request_id, self.headers.reply_type), headers)

    async def _encoded(self, message: BaseModel) -> bytes:
        if self.large:
            return await asyncio.to_thread(codec.dumps, message, self.headers.reply_type)
        return codec.dumps(message, self.headers.reply_type)

    def _reply_headers(self, message: BaseModel | None = None) -> dict[str, str]:
        headers = {names.CONTENT_TYPE: self.headers.reply_type, names.REQUEST_ID: self.headers.request_id}
        if self.worker:
            headers[names.WORKER] = self.worker
        if message is not None and self.headers.reply_type == names.TEXT:
            headers |= codec.text_headers(message)
        return headers

    async def _wait_for_space(self) -> None:
        """Return once the server has read most of what was sent to it.

        Not by a flush: one that takes too long leaves a PONG behind that breaks the connection (nats-py 2.16).
        """
        while True:
            if self.nc.is_connected and self.nc.pending_data_size > MAX_UNSENT_BYTES:
                with _publishing():
                    await self.nc._flush_pending(force_flush=True)
            elif self.nc.backlog_bytes(self.reply, self.received) > MAX_KEPT_BYTES:
                self.nc.eased.clear()
                await self.nc.eased.wait()
            else:
                return
            self._check_still_wanted()

    def _check_still_wanted(self) -> None:
        """Raise what has ended the call: nats-py swallows a cancellation that comes while it flushes."""
        if self.answered:
            return
        if self.ended_by is not None:
            raise self.ended_by
        if asyncio.get_running_loop().time() > self.deadline:
            raise DeadlinePassed("the deadline passed before the stream was through")

    def _check_size(self, body: bytes, headers: dict[str, str]) -> None:
        """The server counts headers too, and disconnects a client that sends too much."""
        if names.header_bytes(headers) + len(body) > self.nc.max_payload:
            raise TooLarge(
                f"the reply would take {len(body)} bytes and a message holds {self.reply_limit}; "
                f"ask for less, for {names.MSGPACK}, or where the subject has one for a stream, with {names.STREAM}: "
                f"true or {names.STREAM_AUTO}"
            )

    async def _publish(self, body: bytes, headers: dict[str, Any] | None, reply: str = "") -> None:
        if not self.denied:
            until = self.deadline + names.WIND_UP_S
            with _publishing():
                await self.nc.publish_kept(
                    self.reply, body, reply=reply, headers=headers, until=until, heard_at=self.received
                )


@contextmanager
def _publishing() -> Iterator[None]:
    try:
        yield
    except NatsError as error:
        raise ReplyLost(str(error)) from error
