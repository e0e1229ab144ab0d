"""One loaded embedding model at work: texts in, finished vectors out, through its batcher."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from models.encoders.base import Encoder, Text, Vectors, check_options

from ..runtime.device_thread import DeviceThread
from ..served_model import ServedModel
from ..telemetry import Telemetry
from .batcher import Batcher
from .pending_text import BatchLimits, Embedded, EmbedParams, PendingText

WINDOW = 256
"""Texts of one request that are queued at a time, two windows ahead: a bulk request must not fill the queue."""
TOKENIZER_THREADS = 3
"""One for each tokenizer queue of a batcher."""


@dataclass(frozen=True, slots=True)
class Part:
    """The vectors of texts[index : index + len(vectors)]; truncated: indices within the request."""

    index: int
    vectors: list[Vectors]
    tokens: int
    truncated: list[int]


class Embedder(ServedModel):
    """A running batcher."""

    def __init__(self, encoder: Encoder, device: DeviceThread, limits: BatchLimits, telemetry: Telemetry) -> None:
        super().__init__(encoder, device)
        self.encoder = encoder
        self._pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix=f"tokenizer.{encoder.model}")
        self.batcher = Batcher(encoder, device, self._pool, limits, telemetry)

    async def _serve(self) -> None:
        await self.batcher.run()

    def _stop_tokenizers(self) -> None:
        super()._stop_tokenizers()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def embed(self, text: Text, params: EmbedParams) -> Embedded:
        """One text. Raises Busy, DeadlinePassed and the errors of `models`."""
        self._check([text], params)
        (pending,) = self.batcher.submit([text], params)
        return await pending.future

    async def embed_all(self, texts: Sequence[Text], params: EmbedParams) -> Part:
        """Many texts as one Part; an error of one text ends all."""
        vectors: list[Vectors] = []
        truncated: list[int] = []
        tokens = 0
        async with aclosing(self.embed_parts(texts, params)) as parts:
            async for part in parts:
                vectors += part.vectors
                truncated += part.truncated
                tokens += part.tokens
        return Part(0, vectors, tokens, truncated)

    async def embed_parts(
        self, texts: Sequence[Text], params: EmbedParams, window: int = WINDOW
    ) -> AsyncGenerator[Part, None]:
        """Many texts, in order, as they are ready. Closing it early drops what has not run."""
        self._check(texts, params)
        ahead: deque[list[PendingText]] = deque()
        try:
            for start, part in self._windows(texts, window):
                if start:
                    await self.batcher.wait_for_space(part, params.priority)
                ahead.append(self.batcher.submit(part, params, start))
                if len(ahead) == 2:
                    yield await _collect(ahead[0])
                    ahead.popleft()
            while ahead:
                yield await _collect(ahead[0])
                ahead.popleft()
        finally:
            for pending in (text for window_texts in ahead for text in window_texts):
                if not pending.future.cancel() and not pending.future.cancelled():
                    pending.future.exception()  # one failure of a request is reported, the others are not

    def _check(self, texts: Sequence[Text], params: EmbedParams) -> None:
        check_options(self.encoder, params.options, params.finish.dimensions)
        self.batcher.require_time(texts, params)

    def _windows(self, texts: Sequence[Text], window: int) -> Iterator[tuple[int, Sequence[Text]]]:
        """The texts in parts of at most `window` texts, and as many tokens as may wait; each with its first index."""
        start = tokens = 0
        for end, text in enumerate(texts):
            (cost,) = self.batcher.estimates([text])
            if end > start and (end - start == window or tokens + cost > self.batcher.window_tokens):
                yield start, texts[start:end]
                start, tokens = end, 0
            tokens += cost
        yield start, texts[start:]


async def _collect(pending: list[PendingText]) -> Part:
    done = await asyncio.gather(*(text.future for text in pending))
    return Part(
        index=pending[0].index,
        vectors=[embedded.vector for embedded in done],
        tokens=sum(embedded.tokens for embedded in done),
        truncated=[text.index for text, embedded in zip(pending, done, strict=True) if embedded.truncated],
    )
