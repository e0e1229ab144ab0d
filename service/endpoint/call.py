"""One request in flight: what its headers asked, by when, and its single terminal answer.

Knows the wire and the connection; knows no handler and no model.
"""

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from pydantic import BaseModel

from subjects import codec, names, stream
from subjects.errors import Cancelled, DeadlinePassed, InvalidField, MLError, TooLarge
from subjects.names import FinishReason

from ..bus.client import BusClient
from .headers import read_headers

MAX_UNSENT_BYTES = 1_048_576
"""How much may wait for the server to read it before a stream waits too: nats-py waits for ten seconds and goes on."""
MAX_KEPT_BYTES = 4 * 2**20
"""How much may be kept to be sent again if the connection breaks, or until it is back, before an answer waits."""
LASTING_PING_S = 5.0
"""After how long without a frame a stream that lasts sends a ping, unless the caller names a time."""
LEAST_PING_S = 1.0
"""Pings of a stream that lasts come no faster, whatever the caller names: it goes on for hours, and costs time."""


class ReplyLost(Exception):
    """An answer could not be published; the caller cannot be told of it."""


class Call:
    """A request, from its arrival to exactly one terminal answer.

    deadline: loop time in seconds. ended_by: the error to answer with when the task is cancelled from outside.
    framed: whether the answer is a stream of frames. timer: what cancels the task at the deadline, once it runs.
    large: whether what is sent next takes long to encode. denied: whether the server refuses the answers.
    caller: where to ask whether somebody still waits; empty: by the frames themselves. gone: where the server says that
    nobody does, a subject that nobody can guess. source: who takes turns with others for what is scarce.
    """

    __slots__ = (
        "_nc",
        "_wind_up",
        "answered",
        "asked",
        "body",
        "caller",
        "deadline",
        "denied",
        "ended_by",
        "framed",
        "frames",
        "gone",
        "large",
        "received",
        "reply",
        "route",
        "running",
        "serial",
        "size",
        "source",
        "task",
        "timer",
    )

    def __init__(
        self, nc: BusClient, route: str, msg: Msg, serial: int, default_timeout_s: float, text: bool = False
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
        self.denied = False
        self.caller = self.source = self.gone = ""
        self.running = False
        self.framed = self.asked.stream is True
        self.frames = 0
        self.large = False
        self.timer: asyncio.Timeout | None = None
        self._wind_up: Callable[[FinishReason], None] | None = None

    @property
    def reply_limit(self) -> int:
        """Bytes that a reply's body may take, with room for its headers."""
        return int(self._nc.max_payload) - 1024

    @property
    def lasting(self) -> bool:
        """Whether it has no deadline; see `last`."""
        return self.deadline == math.inf

    def last(self) -> None:
        """Be a stream of frames and pings that goes on for as long as what it tells of, whatever the headers say."""
        self.deadline = math.inf
        ping_s = max(self.asked.ping_s or LASTING_PING_S, LEAST_PING_S)
        self.asked = replace(self.asked, stream=True, ping_s=ping_s)
        self.framed = True

    def take_body(self) -> bytes:
        """The request's body, which is not kept: a large one would lie here beside what was read from it."""
        body, self.body = self.body, b""
        return body

    def take_stream(self, fields: Any) -> None:
        """Heed a body's `stream`, which means what the header means. Raises InvalidField where the two differ.

        fields: not validated yet, so that a refusal too comes in the form that was asked for.
        """
        stream = fields.get("stream") if isinstance(fields, dict) else None
        if not isinstance(stream, bool) and stream != names.STREAM_AUTO:
            return
        if self.asked.stream not in (None, stream):
            raise InvalidField(f"field 'stream' and the header {names.STREAM} differ; send one, or both alike")
        self.asked = replace(self.asked, stream=stream)
        self.framed = stream is True

    def choose_form(self, too_large: TooLarge | None) -> None:
        """Settle between one reply and frames, before any work.

        too_large: why one reply may not do. Raised where frames were not allowed.
        """
        if self.asked.stream == names.STREAM_AUTO:
            self.framed = too_large is not None
        elif too_large and not self.framed:
            raise too_large

    def cancel(self) -> None:
        """The caller has had enough: a stream may say how far it came, anything else ends as cancelled."""
        if self._wind_up:
            self._wind_up("cancelled")
        else:
            self.end(Cancelled("the request was cancelled"))

    @contextmanager
    def winding_up(self, wind_up: Callable[[FinishReason], None]) -> Iterator[None]:
        """Inside, a stream that is cancelled or at its deadline is told so, and comes to its end by itself.

        wind_up: hears which of the two it is. For its end a stream may pass its deadline, by names.WIND_UP_S.
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
        """Stop the work; the caller gets the reason unless the answer is already out."""
        if self.ended_by is None:
            self.ended_by = reason
            if self.task and self.running:  # a task cancelled before its first step would never answer
                self.task.cancel()

    def deny(self) -> None:
        """Stop the work, and send no more: the server has refused an answer."""
        self.denied = True
        self.end(Cancelled("the server does not let this worker publish to the reply subject"))

    async def answer(self, message: BaseModel) -> None:
        """Send the one reply. Raises TooLarge if it does not fit a message, sending nothing."""
        body, headers = await self._encoded(message), self._headers(message)
        self._check_size(body, headers)
        await self._room()
        self.answered = True
        await self._publish(body, headers)

    async def send(self, event: str, message: BaseModel, probe: str = "") -> None:
        """Send the next frame of a stream, or the reply where there is to be only that.

        probe: a subject that hears of it when nobody listens any more.
        """
        if not self.framed:
            await self.answer(message)
            return
        body = await self._encoded(message.model_copy(update={"seq": self.frames}))
        headers = self._headers(message) | stream.frame_headers(event, self.frames)
        self._check_size(body, headers)
        await self._room()
        self.answered = event == stream.DONE
        self.frames += 1
        await self._publish(body, headers, "" if self.caller else probe)
        if self.caller and probe:
            await self.probe(probe)
        self._check_still_wanted()

    async def probe(self, gone: str) -> None:
        """Ask the caller whether it is still there; where nobody is, the server says so on the subject `gone`."""
        headers = {names.REQUEST_ID: self.asked.request_id, names.EVENT: stream.PROBE}
        with _publishing():
            await self._nc.publish(self.caller, stream.PROBE.encode(), reply=gone, headers=headers)

    async def close(self) -> None:
        """Send the sentinel, an empty body and no headers, where frames were asked for or allowed.

        Also after one reply that was chosen instead: who is ready for frames does not know that no more come.
        """
        if self.asked.stream:
            await self._publish(stream.SENTINEL, None)

    async def fail(self, error: MLError) -> None:
        """Answer with an error, unless an answer is already out."""
        if not self.answered:
            self.answered = error
            headers = self._headers() | error.headers()
            if self.framed:
                headers |= stream.frame_headers(stream.ERROR, self.frames)
                self.frames += 1
            await self._publish(codec.dumps_error(error, self.asked.request_id, self.asked.reply_type), headers)

    async def _encoded(self, message: BaseModel) -> bytes:
        if self.large:
            return await asyncio.to_thread(codec.dumps, message, self.asked.reply_type)
        return codec.dumps(message, self.asked.reply_type)

    def _headers(self, message: BaseModel | None = None) -> dict[str, str]:
        headers = {names.CONTENT_TYPE: self.asked.reply_type, names.REQUEST_ID: self.asked.request_id}
        if message is not None and self.asked.reply_type == names.TEXT:
            headers |= codec.text_headers(message)
        return headers

    async def _room(self) -> None:
        """Return once the server has read most of what was sent to it.

        Not by a flush: one that takes too long leaves a PONG behind that breaks the connection (nats-py 2.16).
        """
        while True:
            if self._nc.is_connected and self._nc.pending_data_size > MAX_UNSENT_BYTES:
                with _publishing():
                    await self._nc._flush_pending(force_flush=True)
            elif self._nc.kept_bytes > MAX_KEPT_BYTES:
                self._nc.eased.clear()
                await self._nc.eased.wait()
            else:
                return
            self._check_still_wanted()

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
        if not self.denied:
            until = self.deadline + names.WIND_UP_S
            with _publishing():
                await self._nc.publish_kept(self.reply, body, reply=probe, headers=headers, until=until)


@contextmanager
def _publishing() -> Iterator[None]:
    try:
        yield
    except NatsError as error:
        raise ReplyLost(str(error)) from error
