"""`ml.embed` and `ml.embed.batch`: decode, call, encode."""

from contextlib import aclosing

import numpy as np

from models.encoders.base import Encoder, TextOptions, check_options
from subjects import names
from subjects.embed import (
    MAX_INTERACTIVE_TEXTS,
    EmbedBatchReply,
    EmbedBatchRequest,
    EmbedChunk,
    EmbedDone,
    EmbedOptions,
    EmbedReply,
    EmbedRequest,
    EncodeOptions,
    Usage,
)
from subjects.errors import InvalidField, TooLarge
from subjects.stream import CHUNK, DONE
from subjects.vectors import UNIT_LENGTH_ONLY, encode, max_bytes

from ..embedding.embedder import WINDOW, Embedder
from ..embedding.pending_text import EmbedParams, Finish
from ..endpoint.call import Call
from ..endpoint.frames import Frames
from ..endpoint.route import Handler
from ..residency import gauges
from ..residency.manager import ModelManager


def params_of(request: EncodeOptions, call: Call, texts: int, normalize: bool = True) -> EmbedParams:
    """How the texts of a request are embedded."""
    options = TextOptions(request.prompt, request.prompt_name, request.task, request.truncate)
    priority = request.priority or ("interactive" if texts <= MAX_INTERACTIVE_TEXTS else "bulk")
    return EmbedParams(options, Finish(normalize, request.dimensions), call.deadline, priority, call.source)


class EmbedHandlers:
    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def handlers(self) -> dict[str, Handler]:
        return {
            names.EMBED: Handler(self.embed, ready_in_s=self._ready_in_s),
            names.EMBED_BATCH: Handler(self.batch),
        }

    def _ready_in_s(self, call: Call) -> float:
        """When a request would be answered, going by its bytes. One of bulk stands in another line."""
        if b"bulk" in call.body:
            return 0.0
        default = self._manager.defaults.get("embedding")
        return gauges.ready_in_s(self._manager.registry, call.body, default, call.source)

    async def embed(self, request: EmbedRequest, call: Call) -> EmbedReply:
        async with self._manager.embedder(request.model) as embedder:
            encoder = embedder.encoder
            done = await embedder.embed(request.text, params_of(request, call, 1, _normalize(request, encoder)))
        return EmbedReply(
            model=encoder.model,
            version=encoder.version,
            usage=Usage(tokens=done.tokens),
            encoding_format=request.encoding_format,
            dimensions=len(done.vector),
            embedding=encode(done.vector, request.encoding_format),
            truncated=done.truncated,
        )

    async def batch(self, request: EmbedBatchRequest, call: Call) -> Frames:
        """The one reply, or chunks as they are ready and then what holds for all of them."""
        async with self._manager.embedder(request.model) as embedder:
            params = params_of(request, call, len(request.texts), _normalize(request, embedder.encoder))
            check_options(embedder.encoder, params.options, request.dimensions)
            vector_bytes = _vector_bytes(request, call, embedder.encoder)
            call.choose_form(_too_large(len(request.texts), vector_bytes, call.reply_limit))
            if call.framed:
                window = max(1, min(WINDOW, call.reply_limit // vector_bytes))
                frames = _chunks(request, params, embedder, window)
            else:
                frames = _whole(request, params, embedder)
            async with aclosing(frames):
                async for frame in frames:
                    yield frame


async def _whole(request: EmbedBatchRequest, params: EmbedParams, embedder: Embedder) -> Frames:
    encoder = embedder.encoder
    part = await embedder.embed_all(request.texts, params)
    yield (
        DONE,
        EmbedBatchReply(
            model=encoder.model,
            version=encoder.version,
            usage=Usage(tokens=part.tokens),
            encoding_format=request.encoding_format,
            dimensions=len(part.vectors[0]),
            embeddings=list(encode(np.stack(part.vectors), request.encoding_format)),
            truncated=part.truncated,
        ),
    )


async def _chunks(request: EmbedBatchRequest, params: EmbedParams, embedder: Embedder, window: int) -> Frames:
    encoder = embedder.encoder
    dimensions = request.dimensions or encoder.dimensions
    tokens = 0
    async with aclosing(embedder.embed_parts(request.texts, params, window)) as parts:
        async for part in parts:
            tokens += part.tokens
            yield (
                CHUNK,
                EmbedChunk(
                    version=encoder.version,
                    index=part.index,
                    encoding_format=request.encoding_format,
                    dimensions=dimensions,
                    embeddings=list(encode(np.stack(part.vectors), request.encoding_format)),
                    truncated=part.truncated,
                ),
            )
    yield (
        DONE,
        EmbedDone(
            model=encoder.model,
            version=encoder.version,
            usage=Usage(tokens=tokens),
            count=len(request.texts),
            dimensions=dimensions,
        ),
    )


def _normalize(request: EmbedOptions, encoder: Encoder) -> bool:
    """Whether vectors are scaled to unit length. Raises InvalidField where the encoding is for such vectors only."""
    normalize = encoder.normalizes if request.normalize is None else request.normalize
    if not normalize and request.encoding_format in UNIT_LENGTH_ONLY:
        raise InvalidField(
            f"field 'encoding_format': {request.encoding_format} keeps no length and is for normalised vectors; "
            "send normalize: true, or take float32, float16 or base64"
        )
    return normalize


def _vector_bytes(request: EmbedOptions, call: Call, encoder: Encoder) -> int:
    return max_bytes(request.dimensions or encoder.dimensions, request.encoding_format, call.asked.reply_type)


def _too_large(texts: int, vector_bytes: int, limit_bytes: int) -> TooLarge | None:
    """Why one message may not hold the reply, if so; before any work, since it could not be sent afterwards."""
    if texts * vector_bytes <= limit_bytes:
        return None
    return TooLarge(
        f"the reply to {texts} texts may not fit a message of {limit_bytes} bytes; send at most "
        f"{limit_bytes // vector_bytes} texts, accept {names.MSGPACK}, or ask for a stream with {names.STREAM}: true, "
        f"or for one where it is needed with {names.STREAM}: {names.STREAM_AUTO}"
    )
