"""`MLClient`: the typed asyncio client."""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from types import TracebackType
from typing import Any, TypedDict

import nats
from nats.aio.client import Client
from typing_extensions import Unpack

from .. import routes
from ..embed import EmbedBatchReply, EmbedChunk, EmbedDone, EmbedReply, SimilarityRanking, SimilarityScore
from ..errors import Internal
from ..names import EncodingFormat, Priority, Truncate
from ..schema import SchemaReply
from . import bulk, discovery
from .forward import ForwardCalls
from .generate import GenerateCalls
from .inbox import PENDING_BYTES
from .jobs import FinetuneCalls, JobsClient
from .models import ModelsClient
from .tokenize import TokenCalls
from .transport import Transport, form_of, forms_of, split

_SCORE: routes.Route[SimilarityScore] = replace(routes.SIMILARITY, reply=SimilarityScore)
_RANKING: routes.Route[SimilarityRanking] = replace(routes.SIMILARITY, reply=SimilarityRanking)


class CallOptions(TypedDict, total=False):
    """The options of every call on texts; see EncodeOptions for the meanings."""

    model: str | None
    dimensions: int | None
    task: str | None
    prompt_name: str | None
    prompt: str | None
    truncate: Truncate
    priority: Priority | None
    timeout_s: float | None


class EmbedCallOptions(CallOptions, total=False):
    normalize: bool | None
    encoding_format: EncodingFormat


class MLClient(GenerateCalls, TokenCalls, FinetuneCalls, ForwardCalls):
    """Embeddings, similarity, completions, tokens and fine-tuning over a NATS connection.

    timeout_s: for a whole call, retries included. retries: how often a retryable error (busy, restarting,
    out of memory, no worker) is tried again, with jitter and no sooner than the worker asks.
    Every call raises a subclass of MLError when it fails. A call that ends early (time-out, cancellation) is cancelled
    at the worker. pending_bytes: of a stream that may wait to be read, before it ends with FrameLost.
    """

    def __init__(
        self, nc: Client, *, timeout_s: float = 30.0, retries: int = 3, pending_bytes: int = PENDING_BYTES
    ) -> None:
        self._nc = nc
        self._transport = Transport(nc, timeout_s, retries, pending_bytes=pending_bytes)
        self._owned = False
        self.models = ModelsClient(self._transport)
        self.jobs = JobsClient(nc, self._transport)

    @classmethod
    async def connect(
        cls,
        servers: str | list[str] = "nats://127.0.0.1:4222",
        *,
        timeout_s: float = 30.0,
        retries: int = 3,
        **options: Any,
    ) -> "MLClient":
        """A client with a connection of its own. options: those of nats.connect (user, password, tls, ...)."""
        client = cls(await nats.connect(servers, **options), timeout_s=timeout_s, retries=retries)
        client._owned = True
        return client

    async def __aenter__(self) -> "MLClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel the calls that wait, and close the connection if `connect` made it."""
        await self._transport.close()
        if self._owned:
            await self._nc.close()

    async def embed(self, text: str | Sequence[int], **options: Unpack[EmbedCallOptions]) -> EmbedReply:
        """One text, or its token ids -> `.embedding` (D,) float32, or as `encoding_format` says (see `to_float32`)."""
        return await self._transport.ask(routes.EMBED, *split({**form_of(text, "text"), **options}))

    async def embed_batch(
        self, texts: Sequence[str] | Sequence[Sequence[int]], **options: Unpack[EmbedCallOptions]
    ) -> EmbedBatchReply:
        """Many texts, or the token ids of many -> `.embeddings`, in order.

        The reply is streamed, so the payload limit does not bound it.
        """
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

    def embed_stream(
        self, texts: Sequence[str] | Sequence[Sequence[int]], **options: Unpack[EmbedCallOptions]
    ) -> AsyncGenerator[EmbedChunk | EmbedDone, None]:
        """Many texts, or the token ids of many -> chunks of vectors as they are ready, then one EmbedDone.

        Closing the iterator early cancels the rest at the worker.
        """
        return self._transport.stream(routes.EMBED_BATCH, *split({**forms_of(texts, "texts"), **options}))

    def embed_all(
        self, texts: Iterable[str], **options: Unpack[EmbedCallOptions]
    ) -> AsyncGenerator[EmbedChunk | EmbedDone, None]:
        """Any number of texts -> chunks of vectors in their order, then one EmbedDone; memory does not grow with them.

        It makes as many requests as needed, two at a time; one that breaks off is continued after its last chunk. The
        texts are read in a thread, as they are needed. timeout_s: for each request. Raises VersionChanged besides the
        errors of `embed_stream`.
        """
        return bulk.embed_all(texts, lambda part: self.embed_stream(part, **options), self._nc.max_payload // 2)

    async def similarity(self, a: str, b: str, **options: Unpack[CallOptions]) -> SimilarityScore:
        """The cosine of two texts."""
        return await self._transport.ask(_SCORE, *split({"a": a, "b": b, **options}))

    async def rank(
        self,
        query: str,
        candidates: Sequence[str],
        *,
        top_k: int | None = None,
        **options: Unpack[CallOptions],
    ) -> SimilarityRanking:
        """Candidates by their cosine to the query, best first."""
        form = {"query": query, "candidates": list(candidates), "top_k": top_k}
        return await self._transport.ask(_RANKING, *split({**form, **options}))

    async def cancel(self, request_id: str) -> None:
        """Cancel the request with this id, whichever worker runs it; its caller gets a Cancelled error."""
        await self._transport.cancel(request_id)

    async def schema(self, subject: str | None = None, *, timeout_s: float | None = None) -> SchemaReply:
        """JSON Schemas of the requests and replies on a subject, or on all of them. Raises NotFound."""
        return await self._transport.ask(routes.SCHEMA, {"subject": subject}, timeout_s)

    async def discover(self, verb: str = "PING", *, wait_s: float = 0.5) -> list[dict[str, Any]]:
        """The answers of all workers to PING, INFO or STATS of the micro protocol within wait_s."""
        return [answer.body for answer in await discovery.ask_workers(self._nc, verb, wait_s)]
