"""A client's requests over a connection: headers, deadlines, retries, frames, and the cancellation of the work."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager, suppress
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry import propagate
from pydantic import BaseModel

from .. import codec, names
from ..errors import Cancelled, DeadlinePassed, InvalidField, MLError, TooLarge
from ..routes import Route
from ..stream import REPLY, Frame, read_frame
from .attempts import Attempts, Silence
from .inbox import CLOSED, PENDING_BYTES, Inbox, inbox, nobody_listens
from .replies import cancellable, error_in, next_message, no_connection, no_worker, parse

ReplyT = TypeVar("ReplyT", bound=BaseModel)
FrameT = TypeVar("FrameT", bound=BaseModel)
Request: TypeAlias = BaseModel | Mapping[str, Any]
"""A message, or its fields, which are then checked."""
Headers: TypeAlias = Mapping[str, str]
_STREAMED: Headers = {names.STREAM: "true"}
_WAY_BACK_S = 0.25


class Transport:
    """Sends requests and reads their replies. Only a message with the request's own id is taken for its answer.

    timeout_s: for a whole call with its retries, unless the call names another time. retries: how often a retryable
    error is tried again. below: the prefix of reply subjects, instead of the connection's own. pending_bytes: of a
    stream that may wait to be read; past them it ends with FrameLost.
    """

    def __init__(
        self, nc: Client, timeout_s: float, retries: int, below: str = "", pending_bytes: int = PENDING_BYTES
    ) -> None:
        self._nc = nc
        self._below = below
        self._timeout_s = timeout_s
        self._pending_bytes = pending_bytes
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
                        message = await next_message(messages, headers, route.subject, left_s, first=not found)
                    worker = (message.headers or {}).get(names.WORKER, "")
                    found[worker] = error_in(message) or parse(message.data, route.reply)
        except nats.errors.Error as error:
            raise no_connection(error) from None
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
                async with aclosing(self._stream_once(route.subject, body, attempts, _STREAMED)) as frames:
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
        return self._stream_once(route.subject, _body(route, request), silence, _STREAMED)

    async def forward(self, subject: str, body: bytes, headers: Headers, timeout_s: float) -> Msg:
        """Send a body as it is, once -> the one reply as it is. headers: win over those of this client."""
        return await self._attempt(subject, body, timeout_s, headers)

    def forward_stream(
        self, subject: str, body: bytes, headers: Headers, time: Attempts | Silence
    ) -> AsyncGenerator[Frame, None]:
        """The same for a reply that may be a stream -> its frames, or one of the event REPLY."""
        return self._stream_once(subject, body, time, headers)

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

    async def _attempt(self, subject: str, body: bytes, timeout_s: float, more: Headers | None = None) -> Msg:
        headers = await self._headers(body, timeout_s, more)
        try:
            with cancellable():
                async with asyncio.timeout(timeout_s):
                    message = await self._reply(subject, body, headers)
        except TimeoutError:
            await self._give_up(headers)
            raise DeadlinePassed(f"no answer on {subject} within {timeout_s:.3g} s") from None
        except nats.errors.Error as error:
            raise no_connection(error) from None
        except (asyncio.CancelledError, Cancelled):
            await self._give_up(headers)
            raise
        if nobody_listens(message):
            raise no_worker(subject)
        if refusal := error_in(message):
            raise refusal
        return message

    async def _reply(self, subject: str, body: bytes, headers: dict[str, str]) -> Msg:
        with self._inbox.expecting(headers[names.REQUEST_ID]) as (to, reply):
            await self._nc.publish(subject, body, reply=to, headers=headers)
            return await reply

    async def _stream_once(
        self, subject: str, body: bytes, attempts: Attempts | Silence, more: Headers
    ) -> AsyncGenerator[Frame, None]:
        headers = await self._headers(body, attempts.left_s(), more)
        ended = False
        try:
            async with inbox(self._nc, self._below, self._pending_bytes) as (reply, messages):
                await self._nc.publish(subject, body, reply=reply, headers=headers)
                expected = 0
                while not ended:
                    left_s = attempts.left_s(names.WIND_UP_S if expected else 0.0)
                    with self._until_closed():
                        message = await next_message(messages, headers, subject, left_s, first=not expected)
                    if refusal := error_in(message):
                        ended = True
                        raise refusal
                    if not expected and names.EVENT not in (message.headers or {}) and more is not _STREAMED:
                        ended = True
                        yield Frame(REPLY, 0, message.data)
                        return
                    frame = read_frame(message.headers or {}, message.data, expected)
                    if frame is not None:
                        expected, ended = frame.seq + 1, frame.last
                        yield frame
        except nats.errors.Error as error:
            raise no_connection(error) from None
        finally:
            if not ended:
                await self._give_up(headers)

    async def _headers(self, body: bytes, timeout_s: float, more: Headers | None = None) -> dict[str, str]:
        """The headers of a new request with this body, and with `more`. Raises TooLarge if a message cannot hold it.

        The worker gets a little less time than the call, so that its answer at the deadline still arrives.
        """
        self._check_open()
        try:
            caller = await self._inbox.open()
        except nats.errors.Error as error:
            raise no_connection(error) from None
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


def form_of(text: str | Sequence[int] | None, field: str) -> dict[str, Any]:
    """The field for a text, or `tokens` for its ids."""
    return {field: text} if text is None or isinstance(text, str) else {"tokens": list(text)}


def forms_of(texts: Sequence[str] | Sequence[Sequence[int]], field: str) -> dict[str, Any]:
    """The field for many texts, or `tokens` for the ids of many."""
    if all(isinstance(text, str) for text in texts):
        return {field: list(texts)}
    return {"tokens": [text if isinstance(text, str) else list(text) for text in texts]}


def split(options: Any) -> tuple[dict[str, Any], float | None]:
    """A call's options -> the fields of its request and its timeout_s. Raises InvalidField."""
    fields = dict(options)
    if "stream" in fields:
        raise InvalidField("field 'stream': the call decides that; `stream` and `embed_stream` give a stream")
    return fields, fields.pop("timeout_s", None)


def _body(route: Route, request: Request) -> bytes:
    message = request if isinstance(request, BaseModel) else codec.validate(request, route.request)
    return codec.dumps(message.model_dump(exclude_defaults=True), names.MSGPACK)
