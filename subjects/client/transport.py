"""A client's requests over a connection: headers, deadlines, retries, frames, and the cancellation of the work."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry import propagate
from pydantic import BaseModel, ValidationError

from .. import codec, names
from ..errors import Cancelled, DeadlinePassed, Internal, InvalidField, MLError, TooLarge, Unavailable, from_reply
from ..routes import Route
from ..stream import Frame, read_frame
from .attempts import Attempts, Silence
from .inbox import CLOSED, Inbox, carries, inbox, nobody_listens

ReplyT = TypeVar("ReplyT", bound=BaseModel)
FrameT = TypeVar("FrameT", bound=BaseModel)
Request: TypeAlias = BaseModel | Mapping[str, Any]
"""A message, or its fields, which are then checked."""
_WAY_BACK_S = 0.25


class Transport:
    """Sends requests and reads their replies. Only a message with the request's own id is taken for its answer.

    timeout_s: for a whole call with its retries, unless the call names another time. retries: how often a retryable
    error is tried again. below: the prefix of reply subjects, instead of the connection's own.
    """

    def __init__(self, nc: Client, timeout_s: float, retries: int, below: str = "") -> None:
        self._nc = nc
        self._below = below
        self._timeout_s = timeout_s
        self.retries = retries
        self._inbox = Inbox(nc, below)
        self._closed = False
        self._listening: set[asyncio.Task[Any]] = set()

    async def ask(self, route: Route[ReplyT], request: Request, timeout_s: float | None) -> ReplyT:
        """Send a request and read the one reply. Raises MLError. A call that is given up is cancelled at the worker."""
        body = _body(route, request)
        attempts = self.attempts(timeout_s)
        while True:
            try:
                return parse((await self._attempt(route.subject, body, attempts.left_s())).data, route.reply)
            except MLError as error:
                await attempts.wait(error)

    async def ask_all(
        self, route: Route[ReplyT], request: Request, answers: int, timeout_s: float | None
    ) -> list[ReplyT | MLError]:
        """Send a request once, to all workers, and read this number of answers as they come.

        A worker's answer may come twice, and counts once. Raises DeadlinePassed if fewer come in time, and the errors
        of `ask` if none can come.
        """
        body, attempts = _body(route, request), self.attempts(timeout_s)
        headers = await self._headers(body, attempts.left_s())
        found: dict[str, ReplyT | MLError] = {}
        try:
            async with inbox(self._nc, self._below) as (to, messages):
                await self._nc.publish(route.subject, body, reply=to, headers=headers)
                while len(found) < answers:
                    left_s = attempts.left_s()
                    with self._until_closed():
                        message = await _next_message(messages, headers, route.subject, left_s, first=not found)
                    worker = (message.headers or {}).get(names.WORKER, "")
                    found[worker] = _error_in(message) or parse(message.data, route.reply)
        except nats.errors.Error as error:
            raise _no_connection(error) from None
        return list(found.values())

    async def stream(
        self, route: Route[Any, FrameT], request: Request, timeout_s: float | None
    ) -> AsyncGenerator[FrameT, None]:
        """The messages of a streamed reply, without pings. Retried until the first frame has come.

        Closing the iterator early cancels the work. The last frame may come WIND_UP_S after timeout_s.
        """
        body = _body(route, request)
        attempts = self.attempts(timeout_s)
        started = False
        while True:
            try:
                async with aclosing(self._stream_once(route.subject, body, attempts)) as frames:
                    async for frame in frames:
                        started = True
                        if message := route.frames.get(frame.event):
                            yield parse(frame.body, message)
                return
            except MLError as error:
                if started:
                    raise
                await attempts.wait(error)

    def listen(self, route: Route, request: Request, silence: Silence) -> AsyncGenerator[Frame, None]:
        """The frames of a lasting stream, pings too, without retries. Closing the iterator early ends it at the worker.

        Raises DeadlinePassed after too long a silence, and the error with which the worker ends the stream.
        """
        return self._stream_once(route.subject, _body(route, request), silence)

    async def cancel(self, request_id: str) -> None:
        """Cancel the request with this id, whichever worker runs it."""
        await self._nc.publish(names.cancel_subject(request_id))

    async def close(self) -> None:
        """Cancel every call that waits; later calls end as cancelled too."""
        self._closed = True
        listening, self._listening = self._listening, set()
        for task in listening:
            task.cancel()
        await self._inbox.close()

    @contextmanager
    def _until_closed(self) -> Iterator[None]:
        """Raises Cancelled inside the context as soon as this client is closed."""
        self._check_open()
        task = asyncio.current_task()
        assert task is not None
        self._listening.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._listening or task.uncancel():  # cancelled by others, or by them as well
                raise
            raise Cancelled(CLOSED) from None
        finally:
            self._listening.discard(task)

    def _check_open(self) -> None:
        if self._closed:
            raise Cancelled(CLOSED)

    def attempts(self, timeout_s: float | None) -> Attempts:
        """The deadline and the retries of a call."""
        return Attempts(self._timeout_s if timeout_s is None else timeout_s, self.retries)

    async def _attempt(self, subject: str, body: bytes, timeout_s: float) -> Msg:
        headers = await self._headers(body, timeout_s)
        try:
            with _cancellable():
                async with asyncio.timeout(timeout_s):
                    message = await self._reply(subject, body, headers)
        except TimeoutError:
            await self._give_up(headers)
            raise DeadlinePassed(f"no answer on {subject} within {timeout_s:.3g} s") from None
        except nats.errors.Error as error:
            raise _no_connection(error) from None
        except (asyncio.CancelledError, Cancelled):
            await self._give_up(headers)
            raise
        if nobody_listens(message):
            raise _no_worker(subject)
        if refusal := _error_in(message):
            raise refusal
        return message

    async def _reply(self, subject: str, body: bytes, headers: dict[str, str]) -> Msg:
        with self._inbox.expecting(headers[names.REQUEST_ID]) as (to, reply):
            await self._nc.publish(subject, body, reply=to, headers=headers)
            return await reply

    async def _stream_once(
        self, subject: str, body: bytes, attempts: Attempts | Silence
    ) -> AsyncGenerator[Frame, None]:
        headers = await self._headers(body, attempts.left_s(), {names.STREAM: "true"})
        ended = False
        try:
            async with inbox(self._nc, self._below) as (reply, messages):
                await self._nc.publish(subject, body, reply=reply, headers=headers)
                expected = 0
                while not ended:
                    left_s = attempts.left_s(names.WIND_UP_S if expected else 0.0)
                    with self._until_closed():
                        message = await _next_message(messages, headers, subject, left_s, first=not expected)
                    if refusal := _error_in(message):
                        ended = True
                        raise refusal
                    frame = read_frame(message.headers or {}, message.data, expected)
                    if frame is not None:
                        expected, ended = frame.seq + 1, frame.last
                        yield frame
        except nats.errors.Error as error:
            raise _no_connection(error) from None
        finally:
            if not ended:
                await self._give_up(headers)

    async def _headers(self, body: bytes, timeout_s: float, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The headers of a new request with this body, and with `more`. Raises TooLarge if a message cannot hold it.

        The worker gets a little less time than the call, so that its answer at the deadline still arrives.
        """
        self._check_open()
        try:
            caller = await self._inbox.open()
        except nats.errors.Error as error:
            raise _no_connection(error) from None
        work_s = min(timeout_s - min(_WAY_BACK_S, timeout_s / 20), names.MAX_TIMEOUT_S)
        headers = {
            names.CONTENT_TYPE: names.MSGPACK,
            names.REQUEST_ID: uuid4().hex,
            names.TIMEOUT_MS: str(max(1, int(work_s * 1000))),
            names.CALLER: caller,
            **(more or {}),
        }
        propagate.inject(headers)  # the current trace, where OpenTelemetry is configured
        size = names.header_bytes(headers) + len(body)
        if size > self._nc.max_payload:  # the server would close the connection
            raise TooLarge(f"the request takes {size} bytes, a message holds {self._nc.max_payload}; send fewer texts")
        return headers

    async def _give_up(self, headers: Mapping[str, str]) -> None:
        """Cancel the work for a request, if the connection still allows it."""
        with suppress(nats.errors.Error):
            await self.cancel(headers[names.REQUEST_ID])


def split(options: Any) -> tuple[dict[str, Any], float | None]:
    """A call's options -> the fields of its request and its timeout_s. Raises InvalidField."""
    fields = dict(options)
    if "stream" in fields:
        raise InvalidField("field 'stream': the call decides that; `stream` and `embed_stream` give a stream")
    return fields, fields.pop("timeout_s", None)


def parse(body: bytes, reply: type[ReplyT]) -> ReplyT:
    """A body as the message that it should be. Raises Internal."""
    try:
        return reply.model_validate(codec.loads(body, codec.request_type(None, body)))
    except ValidationError as error:
        raise Internal(f"the worker's reply is not a {reply.__name__}: {error.error_count()} faults") from None


@contextmanager
def _cancellable() -> Iterator[None]:
    """Raises CancelledError if the task was cancelled inside the context.

    asyncio.wait_for, which nats-py uses, loses a cancellation that arrives together with an answer (before Python
    3.12).
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    yield
    if task.cancelling() > before:
        raise asyncio.CancelledError


async def _next_message(
    messages: Any, headers: Mapping[str, str], subject: str, timeout_s: float, *, first: bool
) -> Msg:
    """The next message that answers the request with these headers.

    first: whether the server may say instead that nobody listens.
    """
    until = time.monotonic() + timeout_s
    while (left_s := until - time.monotonic()) > 0:
        try:
            with _cancellable():
                message: Msg = await messages.next_msg(timeout=left_s)
        except nats.errors.TimeoutError:
            break
        if carries(message, headers[names.REQUEST_ID]):
            return message
        if first and nobody_listens(message):
            raise _no_worker(subject)
    raise DeadlinePassed(f"the stream on {subject} did not end in time")


def _body(route: Route, request: Request) -> bytes:
    message = request if isinstance(request, BaseModel) else codec.validate(request, route.request)
    return codec.dumps(message.model_dump(exclude_defaults=True), names.MSGPACK)


def _no_worker(subject: str) -> Unavailable:
    return Unavailable(f"no worker listens on {subject}; start one with `mlbus serve`")


def _no_connection(error: nats.errors.Error) -> Unavailable:
    return Unavailable(f"the connection to NATS does not carry the request: {error or type(error).__name__}")


def _error_in(message: Msg) -> MLError | None:
    headers = message.headers or {}
    code = headers.get(names.ERROR_CODE)
    if code is None:
        return None
    try:
        body = codec.loads(message.data, codec.request_type(headers.get(names.CONTENT_TYPE), message.data))
    except MLError:
        body = {}
    number = int(code) if code.isdigit() else Internal.code
    return from_reply(number, headers.get(names.ERROR, ""), body if isinstance(body, dict) else {})
