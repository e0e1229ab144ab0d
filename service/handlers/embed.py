"""`ml.embed` and `ml.embed.batch`: decode, call, encode."""

from contextlib import aclosing

from models.encoders.base import TextOptions
from subjects import names
from subjects.embed import (
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
from subjects.errors import TooLarge
from subjects.stream import CHUNK, DONE
from subjects.vectors import max_bytes

from ..call import Call
from ..embedder import WINDOW, Embedder, How
from ..endpoint import Frames, Route
from ..work import Finish


def how(request: EncodeOptions, call: Call, normalize: bool = True) -> How:
    """What a request asks of the embedder."""
    options = TextOptions(request.prompt, request.prompt_name, request.truncate)
    return How(options, Finish(normalize, request.dimensions), call.deadline)


class EmbedHandlers:
    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def routes(self) -> list[Route]:
        return [
            Route("embed", names.EMBED, EmbedRequest, EmbedReply, self.embed, text_field="text"),
            Route("embed-batch", names.EMBED_BATCH, EmbedBatchRequest, EmbedBatchReply, self.batch, stream=self.stream),
        ]

    async def embed(self, request: EmbedRequest, call: Call) -> EmbedReply:
        encoder = self._embedder.encoder(request.model)
        call.encoding_format = request.encoding_format
        done = await self._embedder.embed(request.model, request.text, how(request, call, request.normalize))
        return EmbedReply(
            model=encoder.model,
            version=encoder.version,
            usage=Usage(tokens=done.tokens),
            embedding=done.vector,
            dimensions=len(done.vector),
            truncated=done.truncated,
        )

    async def batch(self, request: EmbedBatchRequest, call: Call) -> EmbedBatchReply:
        encoder = self._embedder.encoder(request.model)
        call.encoding_format = request.encoding_format
        self._check_fits(request, call, len(request.texts))
        part = await self._embedder.embed_all(request.model, request.texts, how(request, call, request.normalize))
        return EmbedBatchReply(
            model=encoder.model,
            version=encoder.version,
            usage=Usage(tokens=part.tokens),
            embeddings=part.vectors,
            dimensions=len(part.vectors[0]),
            truncated=part.truncated,
        )

    async def stream(self, request: EmbedBatchRequest, call: Call) -> Frames:
        encoder = self._embedder.encoder(request.model)
        call.encoding_format = request.encoding_format
        window = max(1, min(WINDOW, call.reply_limit // self._vector_bytes(request, call)))
        asked = how(request, call, request.normalize)
        tokens = 0
        async with aclosing(self._embedder.embed_parts(request.model, request.texts, asked, window)) as parts:
            async for part in parts:
                tokens += part.tokens
                yield CHUNK, EmbedChunk(index=part.index, embeddings=part.vectors, truncated=part.truncated)
        yield (
            DONE,
            EmbedDone(
                model=encoder.model,
                version=encoder.version,
                usage=Usage(tokens=tokens),
                count=len(request.texts),
                dimensions=request.dimensions or encoder.dimensions,
            ),
        )

    def _vector_bytes(self, request: EmbedOptions, call: Call) -> int:
        dimensions = request.dimensions or self._embedder.encoder(request.model).dimensions
        return max_bytes(dimensions, request.encoding_format, call.asked.reply_type)

    def _check_fits(self, request: EmbedOptions, call: Call, texts: int) -> None:
        """Refuse before any work what could not be sent afterwards. Raises TooLarge."""
        each = self._vector_bytes(request, call)
        if texts * each > call.reply_limit:
            raise TooLarge(
                f"the reply to {texts} texts may not fit a message of {call.reply_limit} bytes; send at most "
                f"{call.reply_limit // each} texts, accept {names.MSGPACK}, or ask for a stream with "
                f"{names.STREAM}: true"
            )
