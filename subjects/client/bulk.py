"""Any number of texts as a sequence of streamed requests, two of them at a time, in bounded memory.

Two requests keep the worker busy while the frames of one are read.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

from ..embed import EmbedChunk, EmbedDone, Usage
from ..errors import DeadlinePassed, MLError, VersionChanged
from .attempts import FIRST_PAUSE_S, Pauses

REQUEST_TEXTS = 1024
MAX_PENDING = 2
T = TypeVar("T")
Frames: TypeAlias = AsyncGenerator[EmbedChunk | EmbedDone, None]
Ask: TypeAlias = Callable[[Sequence[str]], Frames]


async def embed_all(texts: Iterable[str], ask: Ask, limit_bytes: int) -> Frames:
    """Chunks in the order of the texts, their indices counted over all, then one EmbedDone for all.

    ask: makes one streamed request. limit_bytes: of the texts of a request. Raises VersionChanged and the errors of
    `ask`.
    """
    pending: asyncio.Queue[_PendingRequest | Exception | None] = asyncio.Queue()
    slots = asyncio.Semaphore(MAX_PENDING)
    sending = asyncio.create_task(_send(slices(texts, limit_bytes), ask, pending, slots))
    total = _Total()
    try:
        while (request := await pending.get()) is not None:
            if isinstance(request, Exception):
                raise request
            try:
                async for frame in request.frames():
                    total.add(frame)
                    if isinstance(frame, EmbedChunk):
                        yield frame
            finally:
                await request.stop()
            slots.release()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        while not pending.empty():
            if isinstance(request := pending.get_nowait(), _PendingRequest):
                await request.stop()
    if total.done is not None:
        yield total.done


async def _send(
    parts: Iterator[list[str]],
    ask: Ask,
    pending: "asyncio.Queue[_PendingRequest | Exception | None]",
    slots: asyncio.Semaphore,
) -> None:
    """Start a request for each part as soon as there is a slot; an error in reading the parts is queued last."""
    first = 0
    last: Exception | None = None
    try:
        while True:
            await slots.acquire()
            if (part := await _in_daemon_thread(next, parts, None)) is None:
                break
            pending.put_nowait(_PendingRequest(_resumed(part, first, ask)))
            first += len(part)
    except Exception as error:
        last = error
    pending.put_nowait(last)


async def _in_daemon_thread(function: Callable[..., T], *arguments: Any) -> T:
    """The result of a call that may block for ever, such as reading a terminal: made in a daemon thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="texts", daemon=True).start()
    return await asyncio.wrap_future(future)


def slices(texts: Iterable[str], limit_bytes: int) -> Iterator[list[str]]:
    """Texts in order, in parts of at most REQUEST_TEXTS texts and `limit_bytes`; one larger text is a part alone."""
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
    """The frames of one request. If it breaks off after a chunk, the remaining texts are requested again.

    first: the index of its first text among all. `ask` itself retries a request that fails before its first chunk.
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
            await asyncio.sleep(Pauses(FIRST_PAUSE_S).after(error))


def _moved(chunk: EmbedChunk, by: int) -> EmbedChunk:
    return chunk.model_copy(update={"index": chunk.index + by, "truncated": [index + by for index in chunk.truncated]})


def _counted(error: MLError, first: int) -> MLError:
    """The error of a request, which numbers texts from its own first one."""
    return type(error)(f"{error} (counted from text {first} on)") if first else error


class _Total:
    """The sum of the frames so far. The tokens of a request that broke off are not known."""

    def __init__(self) -> None:
        self.done: EmbedDone | None = None
        self._version = ""
        self._count = 0

    def add(self, frame: EmbedChunk | EmbedDone) -> None:
        """Raises VersionChanged."""
        if self._version and frame.version != self._version:
            raise VersionChanged(
                f"the model was swapped meanwhile, from version {self._version} to {frame.version}; "
                "vectors of two versions do not mix, so start again"
            )
        self._version = frame.version
        if isinstance(frame, EmbedChunk):
            self._count += len(frame.embeddings)
        else:
            tokens = frame.usage.tokens + (self.done.usage.tokens if self.done else 0)
            self.done = frame.model_copy(update={"count": self._count, "usage": Usage(tokens=tokens)})


class _PendingRequest:
    """A request that runs while an earlier one is read; its frames, at most one a text, wait here."""

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
