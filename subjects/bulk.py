"""Any number of texts as a row of streamed requests: two in flight, so that the worker never idles, in bounded memory.

Knows the frames of a streamed batch and how they fail; knows no connection and no file.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import TypeAlias

from .embed import EmbedChunk, EmbedDone, Usage
from .errors import DeadlinePassed, MLError, VersionChanged

REQUEST_TEXTS = 1024
IN_FLIGHT = 2
PAUSE_S = 0.05
Frames: TypeAlias = AsyncGenerator[EmbedChunk | EmbedDone, None]
Ask: TypeAlias = Callable[[Sequence[str]], Frames]


async def embed_all(texts: Iterable[str], ask: Ask, limit_bytes: int) -> Frames:
    """Chunks in the order of the texts, their indices counted over all, then one EmbedDone for all.

    ask: one streamed request. limit_bytes: of the texts of a request. Raises VersionChanged, and what `ask` raises.
    """
    parts = slices(texts, limit_bytes)
    flights: deque[_Flight] = deque()
    total = _Total()
    first = 0
    try:
        while True:
            while len(flights) < IN_FLIGHT and (part := await asyncio.to_thread(next, parts, None)):
                flights.append(_Flight(_resumed(part, first, ask)))
                first += len(part)
            if not flights:
                break
            async with aclosing(flights[0].frames()) as frames:
                async for frame in frames:
                    total.add(frame)
                    if isinstance(frame, EmbedChunk):
                        yield frame
            flights.popleft()
    finally:
        for flight in flights:
            await flight.stop()
    if total.done is not None:
        yield total.done


def slices(texts: Iterable[str], limit_bytes: int) -> Iterator[list[str]]:
    """Texts in order, in parts of at most REQUEST_TEXTS and, where one alone does not exceed it, `limit_bytes`."""
    part: list[str] = []
    size = 0
    for text in texts:
        text_bytes = len(text.encode(errors="surrogatepass"))
        if part and (len(part) == REQUEST_TEXTS or size + text_bytes > limit_bytes):
            yield part
            part, size = [], 0
        part.append(text)
        size += text_bytes
    if part:
        yield part


async def _resumed(texts: Sequence[str], first: int, ask: Ask) -> Frames:
    """The frames of one request; where it broke off after a chunk, also those of the texts that were left.

    first: the index of its first text among all. `ask` itself repeats what fails before its first chunk.
    """
    done = 0
    while True:
        begun = done
        try:
            async with aclosing(ask(texts[begun:])) as frames:
                async for frame in frames:
                    if isinstance(frame, EmbedChunk):
                        done += len(frame.embeddings)
                        frame = _moved(frame, first + begun)
                    yield frame
            return
        except MLError as error:
            if done == begun or not (error.retryable or isinstance(error, DeadlinePassed)):
                raise _counted(error, first + begun) from None
            await asyncio.sleep(max(PAUSE_S, (error.retry_after_ms or 0) / 1000))


def _moved(chunk: EmbedChunk, by: int) -> EmbedChunk:
    return chunk.model_copy(update={"index": chunk.index + by, "truncated": [index + by for index in chunk.truncated]})


def _counted(error: MLError, first: int) -> MLError:
    """The error of a request whose texts are counted from its own first one."""
    return type(error)(f"{error} (counted from text {first} on)") if first else error


class _Total:
    """What was served so far, by which weights."""

    def __init__(self) -> None:
        self.done: EmbedDone | None = None
        self._version = ""

    def add(self, frame: EmbedChunk | EmbedDone) -> None:
        """Raises VersionChanged."""
        if self._version and frame.version != self._version:
            raise VersionChanged(
                f"the model was swapped meanwhile, from version {self._version} to {frame.version}; "
                "vectors of two versions do not mix, so start again"
            )
        self._version = frame.version
        if isinstance(frame, EmbedDone):
            before = self.done
            count, tokens = (before.count, before.usage.tokens) if before else (0, 0)
            usage = Usage(tokens=tokens + frame.usage.tokens)
            self.done = frame.model_copy(update={"count": count + frame.count, "usage": usage})


class _Flight:
    """A request that runs while an earlier one is read; its frames wait here, no more of them than it has texts."""

    def __init__(self, frames: Frames) -> None:
        self._waiting: asyncio.Queue[EmbedChunk | EmbedDone | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._fill(frames))

    async def _fill(self, frames: Frames) -> None:
        try:
            async with aclosing(frames):
                async for frame in frames:
                    self._waiting.put_nowait(frame)
        finally:
            self._waiting.put_nowait(None)

    async def frames(self) -> Frames:
        while (frame := await self._waiting.get()) is not None:
            yield frame
        await self._task

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
