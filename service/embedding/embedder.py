"""One loaded embedding model, as handlers ask for it: texts in, finished vectors out, through its batcher."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from models.encoders.base import Encoder, TextOptions, Vectors, check_options

from ..residency.served import facts_of
from ..runtime.device_thread import DeviceThread
from ..runtime.loop import Loop
from .batch_runner import BatchObserver
from .batcher import Batcher
from .work import BatchLimits, Embedded, Finish, PendingText, Priority

WINDOW = 256
"""Texts of one request that are queued at a time, two windows ahead: a bulk request must not own the queue."""
TOKENIZER_THREADS = 3
"""One for each lane of a batcher."""


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """How texts of a request are embedded. deadline: loop time in seconds. source: who takes turns with others."""

    options: TextOptions
    finish: Finish
    deadline: float
    priority: Priority = "interactive"
    source: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The vectors of texts[index : index + len(vectors)]; truncated: indices within the request."""

    index: int
    vectors: list[Vectors]
    tokens: int
    truncated: list[int]


class Embedder:
    """A running batcher and what belongs to it; `close` ends both and lets go of the weights."""

    def __init__(self, encoder: Encoder, device: DeviceThread, limits: BatchLimits, observer: BatchObserver) -> None:
        self.encoder = encoder
        self.facts = facts_of(encoder)
        self._device = device
        self._pool = ThreadPoolExecutor(TOKENIZER_THREADS, thread_name_prefix=f"tokenizer.{encoder.model}")
        self.batcher = Batcher(encoder, device, self._pool, limits, observer)
        self._loop = Loop(f"batcher.{self.encoder.model}")

    def start(self, on_died: Callable[[BaseException], None]) -> None:
        """Begin to work. on_died hears of an end that nobody asked for, since then nobody would answer its callers."""
        self._loop.start(self.batcher.run(), on_died)

    async def stop(self) -> None:
        """End the batcher; what waits is cancelled."""
        await self._loop.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def close(self) -> None:
        """Stop, then let go of the weights, on the device's thread: a pass of no interest may still run there.

        Urgently: behind a flood of requests closed models would pile up.
        """
        await self.stop()
        await self._device.run(self.encoder.close, urgent=True)

    async def embed(self, text: str, how: EmbedParams) -> Embedded:
        """One text. Raises Busy, DeadlinePassed and the errors of `models`."""
        self._check([text], how)
        (work,) = self._submit([text], how)
        return await work.future

    async def embed_all(self, texts: Sequence[str], how: EmbedParams) -> Part:
        """Many texts as one Part; what is found wrong with one ends all."""
        vectors: list[Vectors] = []
        truncated: list[int] = []
        tokens = 0
        async with aclosing(self.embed_parts(texts, how)) as parts:
            async for part in parts:
                vectors += part.vectors
                truncated += part.truncated
                tokens += part.tokens
        return Part(0, vectors, tokens, truncated)

    async def embed_parts(
        self, texts: Sequence[str], how: EmbedParams, window: int = WINDOW
    ) -> AsyncGenerator[Part, None]:
        """Many texts, in order, as they are ready. Closing it early drops what has not run."""
        self._check(texts, how)
        ahead: deque[list[PendingText]] = deque()
        try:
            for start, part in self._windows(texts, window):
                if start:
                    await self.batcher.room(part, how.priority)
                ahead.append(self._submit(part, how, start))
                if len(ahead) == 2:
                    yield await _collect(ahead[0])
                    ahead.popleft()
            while ahead:
                yield await _collect(ahead[0])
                ahead.popleft()
        finally:
            _abandon(work for works in ahead for work in works)

    def _submit(self, texts: Sequence[str], how: EmbedParams, start: int = 0) -> list[PendingText]:
        return self.batcher.submit(texts, how.options, how.finish, how.deadline, start, how.priority, how.source)

    def _check(self, texts: Sequence[str], how: EmbedParams) -> None:
        check_options(self.encoder, how.options, how.finish.dimensions)
        self.batcher.require_time(texts, how.deadline, how.priority, how.source)

    def _windows(self, texts: Sequence[str], window: int) -> Iterator[tuple[int, Sequence[str]]]:
        """The texts in parts, each with the index of its first: so many texts, or as many tokens as may wait."""
        start = tokens = 0
        for end, text in enumerate(texts):
            (cost,) = self.batcher.estimates([text])
            if end > start and (end - start == window or tokens + cost > self.batcher.window_tokens):
                yield start, texts[start:end]
                start, tokens = end, 0
            tokens += cost
        yield start, texts[start:]


def _abandon(works: Iterable[PendingText]) -> None:
    for work in works:
        if not work.future.cancel() and not work.future.cancelled():
            work.future.exception()  # seen: one failure of a request is reported, the others are not


async def _collect(works: list[PendingText]) -> Part:
    done = await asyncio.gather(*(work.future for work in works))
    return Part(
        index=works[0].index,
        vectors=[embedded.vector for embedded in done],
        tokens=sum(embedded.tokens for embedded in done),
        truncated=[work.index for work, embedded in zip(works, done, strict=True) if embedded.truncated],
    )
