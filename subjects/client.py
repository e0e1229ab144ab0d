"""`MLClient`: the typed asyncio client. Works against any worker; knows no model and no torch."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, TypedDict, TypeVar
from uuid import uuid4

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from opentelemetry import propagate
from pydantic import BaseModel, ValidationError
from typing_extensions import Unpack

from . import bulk, codec, discovery, names
from .attempts import Attempts
from .discovery import inbox
from .embed import EmbedBatchReply, EmbedBatchRequest, EmbedChunk, EmbedDone, EmbedReply, EmbedRequest, Priority
from .encodings import EncodingFormat
from .errors import DeadlinePassed, Internal, MLError, TooLarge, Unavailable, from_reply
from .models_client import ModelsClient
from .similarity import SimilarityRanking, SimilarityRequest, SimilarityScore
from .stream import DONE, Frame, read_frame

ReplyT = TypeVar("ReplyT", bound=BaseModel)


class CallOptions(TypedDict, total=False):
    """What every call takes besides its texts; see EmbedRequest for the meanings."""

    model: str | None
    dimensions: int | None
    task: str | None
    prompt_name: str | None
    prompt: str | None
    truncate: str
    priority: Priority | None
    timeout_s: float | None


class EmbedCallOptions(CallOptions, total=False):
    normalize: bool | None
    encoding_format: EncodingFormat


class MLClient:
    """Embeddings and similarity over a NATS connection.

    timeout_s: for a whole call, retries included. retries: how often a retryable error (busy, restarting,
    out of memory, no worker) is tried again, with jitter and no sooner than the worker asks.
    Every call raises a subclass of MLError when it fails; giving up (time-out, cancellation) tells the worker.
    """

    def __init__(self, nc: Client, *, timeout_s: float = 30.0, retries: int = 3) -> None:
        self._nc = nc
        self._timeout_s = timeout_s
        self._retries = retries
        self._owned = False
        self.models = ModelsClient(self._ask)

    @classmethod
    async def connect(
        cls, servers: str | list[str] = "nats://127.0.0.1:4222", *, timeout_s: float = 30.0, **options: Any
    ) -> "MLClient":
        """A client with a connection of its own. options: those of nats.connect (user, password, tls, ...)."""
        client = cls(await nats.connect(servers, **options), timeout_s=timeout_s)
        client._owned = True
        return client

    async def __aenter__(self) -> "MLClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection if `connect` made it."""
        if self._owned:
            await self._nc.close()

    async def embed(self, text: str, **options: Unpack[EmbedCallOptions]) -> EmbedReply:
        """One text -> `.embedding` (D,) float32, or what `encoding_format` asks for (see `to_float32`)."""
        fields, timeout_s = _split(options)
        return await self._ask(
            names.EMBED, codec.validate({"text": text, **fields}, EmbedRequest), EmbedReply, timeout_s
        )

    async def embed_batch(self, texts: Sequence[str], **options: Unpack[EmbedCallOptions]) -> EmbedBatchReply:
        """Many texts -> `.embeddings`, in order; streamed underneath, so the payload limit does not bound the reply."""
        embeddings: list[Any] = []
        truncated: list[int] = []
        async with aclosing(self.embed_stream(texts, **options)) as frames:
            async for frame in frames:
                if isinstance(frame, EmbedDone):
                    return EmbedBatchReply(
                        **frame.model_dump(include={"model", "version", "usage", "dimensions"}),
                        encoding_format=options.get("encoding_format", "float32"),
                        embeddings=embeddings,
                        truncated=truncated,
                    )
                embeddings += frame.embeddings
                truncated += frame.truncated
        raise Internal("the stream ended without its last frame")

    async def embed_stream(
        self, texts: Sequence[str], **options: Unpack[EmbedCallOptions]
    ) -> AsyncGenerator[EmbedChunk | EmbedDone, None]:
        """Many texts -> chunks of vectors as they are ready, then one EmbedDone.

        Closing the iterator early cancels the rest at the worker.
        """
        fields, timeout_s = _split(options)
        request = codec.validate({"texts": list(texts), **fields}, EmbedBatchRequest)
        async with aclosing(self._stream(names.EMBED_BATCH, request, timeout_s)) as frames:
            async for frame in frames:
                if frame.event == DONE:
                    yield _parse(frame.body, EmbedDone)
                else:
                    yield _parse(frame.body, EmbedChunk)

    async def embed_all(
        self, texts: Iterable[str], **options: Unpack[EmbedCallOptions]
    ) -> AsyncGenerator[EmbedChunk | EmbedDone, None]:
        """Any number of texts -> chunks of vectors in their order, then one EmbedDone; memory does not grow with them.

        As many requests as it takes, two at a time; one that breaks off goes on after its last chunk. The texts are
        read in a thread, as they are needed. timeout_s: for each request. Raises VersionChanged besides what
        `embed_stream` raises.
        """
        asked = bulk.embed_all(texts, lambda part: self.embed_stream(part, **options), self._nc.max_payload // 2)
        async with aclosing(asked) as frames:
            async for frame in frames:
                yield frame

    async def similarity(self, a: str, b: str, **options: Unpack[CallOptions]) -> SimilarityScore:
        """The cosine of two texts."""
        fields, timeout_s = _split(options)
        request = codec.validate({"a": a, "b": b, **fields}, SimilarityRequest)
        return await self._ask(names.SIMILARITY, request, SimilarityScore, timeout_s)

    async def rank(
        self,
        query: str,
        candidates: Sequence[str],
        *,
        top_k: int | None = None,
        **options: Unpack[CallOptions],
    ) -> SimilarityRanking:
        """Candidates by their cosine to the query, best first."""
        fields, timeout_s = _split(options)
        form = {"query": query, "candidates": list(candidates), "top_k": top_k}
        request = codec.validate({**form, **fields}, SimilarityRequest)
        return await self._ask(names.SIMILARITY, request, SimilarityRanking, timeout_s)

    async def cancel(self, request_id: str) -> None:
        """End the request with this id wherever it runs; its caller gets a Cancelled error."""
        await self._nc.publish(names.cancel_subject(request_id))

    async def discover(self, verb: str = "PING", *, wait_s: float = 0.5) -> list[dict[str, Any]]:
        """What every worker answers to the micro protocol's PING, INFO or STATS within wait_s."""
        return [answer.body for answer in await discovery.ask_workers(self._nc, verb, wait_s)]

    async def _ask(self, subject: str, request: BaseModel, reply: type[ReplyT], timeout_s: float | None) -> ReplyT:
        body = _body(request)
        attempts = Attempts(self._timeout_s if timeout_s is None else timeout_s, self._retries)
        while True:
            try:
                return _parse((await self._attempt(subject, body, attempts.left_s())).data, reply)
            except MLError as error:
                await attempts.wait(error)

    async def _attempt(self, subject: str, body: bytes, timeout_s: float) -> Msg:
        request_id = uuid4().hex
        headers = _headers(request_id, timeout_s)
        self._check_size(headers, body)
        try:
            message = await self._nc.request(subject, body, timeout=timeout_s, headers=headers)
        except nats.errors.NoRespondersError:
            raise _no_worker(subject) from None
        except nats.errors.TimeoutError:
            await self._give_up(request_id)
            raise DeadlinePassed(f"no answer on {subject} within {timeout_s:.3g} s") from None
        except nats.errors.Error as error:
            raise _no_connection(error) from None
        except asyncio.CancelledError:
            await self._give_up(request_id)
            raise
        _raise_if_error(message)
        return message

    async def _stream(self, subject: str, request: BaseModel, timeout_s: float | None) -> AsyncGenerator[Frame, None]:
        body = _body(request)
        attempts = Attempts(self._timeout_s if timeout_s is None else timeout_s, self._retries)
        started = False
        while True:
            try:
                async with aclosing(self._stream_once(subject, body, attempts)) as frames:
                    async for frame in frames:
                        started = True
                        yield frame
                return
            except MLError as error:
                if started:
                    raise
                await attempts.wait(error)

    async def _stream_once(self, subject: str, body: bytes, attempts: Attempts) -> AsyncGenerator[Frame, None]:
        request_id = uuid4().hex
        headers = _headers(request_id, attempts.left_s()) | {names.STREAM: "true"}
        self._check_size(headers, body)
        ended = False
        try:
            async with inbox(self._nc) as (reply, messages):
                await self._nc.publish(subject, body, reply=reply, headers=headers)
                for seq in itertools.count():
                    frame = await _next_frame(messages, subject, seq, attempts.left_s())
                    ended = frame.last
                    yield frame
                    if frame.last:
                        return
        except nats.errors.Error as error:
            raise _no_connection(error) from None
        finally:
            if not ended:
                await self._give_up(request_id)

    async def _give_up(self, request_id: str) -> None:
        """Tell the worker that nobody waits any more, if there is still a way to tell it."""
        with suppress(nats.errors.Error):
            await self.cancel(request_id)

    def _check_size(self, headers: dict[str, str], body: bytes) -> None:
        """The server counts the headers too, and closes the connection on a message that is too large."""
        size = names.header_bytes(headers) + len(body)
        if size > self._nc.max_payload:
            raise TooLarge(f"the request takes {size} bytes, a message holds {self._nc.max_payload}; send fewer texts")


async def _next_frame(messages: Any, subject: str, seq: int, timeout_s: float) -> Frame:
    try:
        message: Msg = await messages.next_msg(timeout=timeout_s)
    except nats.errors.TimeoutError:
        raise DeadlinePassed(f"the stream on {subject} did not end in time") from None
    if (message.headers or {}).get("Status") == "503":
        raise _no_worker(subject)
    _raise_if_error(message)
    return read_frame(message.headers or {}, message.data, seq)


def _split(options: Any) -> tuple[dict[str, Any], float | None]:
    fields = dict(options)
    return fields, fields.pop("timeout_s", None)


def _body(request: BaseModel) -> bytes:
    return codec.dumps(request.model_dump(exclude_defaults=True), names.MSGPACK)


def _headers(request_id: str, timeout_s: float) -> dict[str, str]:
    headers = {
        names.CONTENT_TYPE: names.MSGPACK,
        names.REQUEST_ID: request_id,
        names.TIMEOUT_MS: str(max(1, int(min(timeout_s, names.MAX_TIMEOUT_S) * 1000))),
    }
    propagate.inject(headers)  # the current trace, where OpenTelemetry is configured
    return headers


def _no_worker(subject: str) -> Unavailable:
    return Unavailable(f"no worker listens on {subject}; start one with `mlbus serve`")


def _no_connection(error: nats.errors.Error) -> Unavailable:
    return Unavailable(f"the connection to NATS does not carry the request: {error or type(error).__name__}")


def _raise_if_error(message: Msg) -> None:
    headers = message.headers or {}
    code = headers.get(names.ERROR_CODE)
    if code is None:
        return
    try:
        body = codec.loads(message.data, codec.request_type(headers.get(names.CONTENT_TYPE), message.data))
    except MLError:
        body = {}
    number = int(code) if code.isdigit() else Internal.code
    raise from_reply(number, headers.get(names.ERROR, ""), body if isinstance(body, dict) else {})


def _parse(body: bytes, reply: type[ReplyT]) -> ReplyT:
    try:
        return reply.model_validate(codec.loads(body, codec.request_type(None, body)))
    except ValidationError as error:
        raise Internal(f"the worker's reply is not a {reply.__name__}: {error.error_count()} faults") from None
