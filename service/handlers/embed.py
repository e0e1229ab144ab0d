"""`ml.embed`, `ml.embed.batch` and `ml.similarity`: decode, embed, encode or compare."""

from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.encoders.base import Encoder, TextOptions, Vectors, check_options
from subjects import embed as wire
from subjects import names
from subjects.errors import InvalidField, TooLarge
from subjects.stream import CHUNK, DONE
from subjects.vectors import UNIT_LENGTH_ONLY, encode, max_bytes

from ..embedding.embedder import WINDOW, Embedder
from ..embedding.pending_text import EmbedParams, Finish
from ..embedding.unread_request import ready_in_s
from ..endpoint.call import Call
from ..endpoint.frames import Frames
from ..endpoint.route import Handler
from ..residency import overview
from ..residency.manager import ModelManager


def params_of(request: wire.EncodeOptions, call: Call, texts: int, normalize: bool = True) -> EmbedParams:
    """How the texts of a request are embedded."""
    options = TextOptions(request.prompt, request.prompt_name, request.task, request.truncate)
    priority = request.priority or ("interactive" if texts <= wire.MAX_INTERACTIVE_TEXTS else "bulk")
    return EmbedParams(options, Finish(normalize, request.dimensions), call.deadline, priority, call.caller)


@dataclass(frozen=True, slots=True)
class EmbedHandlers:
    manager: ModelManager

    def handlers(self) -> dict[str, Handler]:
        return {
            names.EMBED: Handler(self.embed, ready_in_s=self._ready_in_s),
            names.EMBED_BATCH: Handler(self.batch),
            names.SIMILARITY: Handler(self.similarity),
        }

    def _ready_in_s(self, call: Call) -> float:
        """When a request would be answered, judged by its bytes. Bulk requests wait in another queue."""
        if b"bulk" in call.body:
            return 0.0
        default = self.manager.defaults.get("embedding")
        return ready_in_s(overview.batchers(self.manager.registry), call.body, default, call.caller)

    async def embed(self, request: wire.EmbedRequest, call: Call) -> wire.EmbedReply:
        async with self.manager.embedder(request.model) as embedder:
            encoder = embedder.encoder
            if request.tokens is not None:
                await require_known(embedder, {"tokens": request.tokens})
            done = await embedder.embed(request.content, params_of(request, call, 1, _normalize(request, encoder)))
        return wire.EmbedReply(
            **_common(encoder, done.tokens),
            encoding_format=request.encoding_format,
            dimensions=len(done.vector),
            embedding=encode(done.vector, request.encoding_format),
            truncated=done.truncated,
        )

    async def batch(self, request: wire.EmbedBatchRequest, call: Call) -> Frames:
        """The one reply; or chunks as they are ready, and then the `done` frame."""
        async with self.manager.embedder(request.model) as embedder:
            texts = request.contents
            params = params_of(request, call, len(texts), _normalize(request, embedder.encoder))
            check_options(embedder.encoder, params.options, request.dimensions)
            vector_bytes = _vector_bytes(request, call, embedder.encoder)
            call.choose_form(_too_large(len(texts), vector_bytes, call.reply_limit))
            await require_known(embedder, {f"tokens.{i}": ids for i, ids in enumerate(request.tokens or [])})
            if not call.framed:
                yield DONE, await _whole(request, params, embedder)
                return
            window = max(1, min(WINDOW, call.reply_limit // vector_bytes))
            async with aclosing(_chunks(request, params, embedder, window)) as frames:
                async for frame in frames:
                    yield frame

    async def similarity(self, request: wire.SimilarityRequest, call: Call) -> wire.SimilarityReply:
        texts = [text for text in (request.a, request.b, request.query) if text is not None]
        texts += request.candidates or []
        async with self.manager.embedder(request.model) as embedder:
            encoder = embedder.encoder
            part = await embedder.embed_all(texts, params_of(request, call, len(texts)))
        scores = cosines(part.vectors[0], part.vectors[1:])
        common = _common(encoder, part.tokens) | {"truncated": bool(part.truncated)}
        if request.candidates is None:
            return wire.SimilarityScore(score=float(scores[0]), **common)
        best = np.argsort(-scores, kind="stable")[: request.top_k]
        return wire.SimilarityRanking(
            results=[wire.Ranked(index=int(i), score=float(scores[i])) for i in best], **common
        )


async def require_known(embedder: Embedder, lists: Mapping[str, Sequence[int]]) -> None:
    """Refuse ids that the model does not have. lists: by the name of their field. Raises InvalidOption."""
    if lists:
        require = embedder.encoder.vocabulary.require
        await embedder.on_tokenizer(
            sum(map(len, lists.values())), lambda: [require(ids, field) for field, ids in lists.items()]
        )


def cosines(left: Vectors, right: Sequence[Vectors]) -> Vectors:
    """Cosine of one unit vector (D,) with each of N unit vectors (D,) -> (N,), -1 to 1."""
    scores: Vectors = np.clip(np.stack(right) @ left, -1.0, 1.0)
    return scores


def _common(encoder: Encoder, tokens: int) -> dict[str, Any]:
    """The fields that all replies have."""
    return {"model": encoder.model, "version": encoder.version, "usage": wire.Usage(tokens=tokens)}


async def _whole(request: wire.EmbedBatchRequest, params: EmbedParams, embedder: Embedder) -> wire.EmbedBatchReply:
    part = await embedder.embed_all(request.contents, params)
    return wire.EmbedBatchReply(
        **_common(embedder.encoder, part.tokens),
        encoding_format=request.encoding_format,
        dimensions=len(part.vectors[0]),
        embeddings=list(encode(np.stack(part.vectors), request.encoding_format)),
        truncated=part.truncated,
    )


async def _chunks(request: wire.EmbedBatchRequest, params: EmbedParams, embedder: Embedder, window: int) -> Frames:
    encoder = embedder.encoder
    dimensions = request.dimensions or encoder.dimensions
    tokens = 0
    async with aclosing(embedder.embed_parts(request.contents, params, window)) as parts:
        async for part in parts:
            tokens += part.tokens
            chunk = wire.EmbedChunk(
                version=encoder.version,
                index=part.index,
                encoding_format=request.encoding_format,
                dimensions=dimensions,
                embeddings=list(encode(np.stack(part.vectors), request.encoding_format)),
                truncated=part.truncated,
            )
            yield CHUNK, chunk
    yield DONE, wire.EmbedDone(**_common(encoder, tokens), count=len(request.contents), dimensions=dimensions)


def _normalize(request: wire.EmbedOptions, encoder: Encoder) -> bool:
    """Whether vectors are scaled to unit length. Raises InvalidField if the encoding is for such vectors only."""
    normalize = encoder.normalizes if request.normalize is None else request.normalize
    if not normalize and request.encoding_format in UNIT_LENGTH_ONLY:
        raise InvalidField(
            f"field 'encoding_format': {request.encoding_format} keeps no length and is for normalised vectors; "
            "send normalize: true, or take float32, float16 or base64"
        )
    return normalize


def _vector_bytes(request: wire.EmbedOptions, call: Call, encoder: Encoder) -> int:
    return max_bytes(request.dimensions or encoder.dimensions, request.encoding_format, call.headers.reply_type)


def _too_large(texts: int, vector_bytes: int, limit_bytes: int) -> TooLarge | None:
    """Why one message may not hold the reply, if so; known before any work is done for it."""
    if texts * vector_bytes <= limit_bytes:
        return None
    return TooLarge(
        f"the reply to {texts} texts may not fit a message of {limit_bytes} bytes; send at most "
        f"{limit_bytes // vector_bytes} texts, accept {names.MSGPACK}, or ask for a stream with {names.STREAM}: true, "
        f"or for one where it is needed with {names.STREAM}: {names.STREAM_AUTO}"
    )
