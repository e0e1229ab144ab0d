"""Texts on their way to tokens: a queue, and one job at a time in the tokenisers' pool. Knows no batch."""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from heapq import heappop, heappush
from itertools import groupby

import structlog

from models.encoders.base import Encoder, TextOptions, Tokens
from models.errors import TextTooLong
from subjects.errors import DeadlinePassed

from .work import PendingText

log = structlog.get_logger(__name__)

Deliver = Callable[[PendingText, "Tokens | Exception"], None]


class TokenizerQueue:
    """Works whose texts wait for the tokeniser, by their turns; each is delivered with its tokens or what went wrong.

    slice_chars: characters that one job takes on, unless its first text alone has more.
    """

    def __init__(self, encoder: Encoder, pool: Executor, deliver: Deliver, slice_chars: int) -> None:
        self._encoder = encoder
        self._pool = pool
        self._deliver = deliver
        self._slice_chars = slice_chars
        self._waiting: list[tuple[float, int, PendingText]] = []
        self._numbers = itertools.count()
        self._any = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, works: Iterable[PendingText]) -> None:
        for work in works:
            heappush(self._waiting, (work.turn, next(self._numbers), work))
        if self._waiting:
            self._any.set()

    async def run(self) -> None:
        """Tokenise for ever."""
        while True:
            await self._any.wait()
            for options, works in groupby(self._next_slice(), key=lambda work: work.options):
                await self._tokenize(list(works), options)

    def _next_slice(self) -> list[PendingText]:
        works: list[PendingText] = []
        chars = 0
        while self._waiting and (not works or chars + len(self._waiting[0][2].text) <= self._slice_chars):
            _, _, work = heappop(self._waiting)
            if work.wanted():
                works.append(work)
                chars += len(work.text)
            else:
                self._deliver(work, DeadlinePassed("the deadline passed while the text waited for the tokeniser"))
        if not self._waiting:
            self._any.clear()
        return works

    async def _tokenize(self, works: list[PendingText], options: TextOptions) -> None:
        """One job; where it fails, each text on its own, so that only the culprit fails."""
        texts = [work.text for work in works]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._job, texts, options)
        except Exception as error:
            log.warning("tokenising.failed", model=self._encoder.model, texts=len(works), error=type(error).__name__)
            if len(works) == 1:
                self._deliver(works[0], error)
                return
            for work in works:
                await self._tokenize([work], options)
        else:
            for work, result in zip(works, results, strict=True):
                self._deliver(work, result)

    def _job(self, texts: Sequence[str], options: TextOptions) -> list[Tokens | TextTooLong]:
        try:
            return self._encoder.tokenize(texts, options)
        except BaseException as error:
            if isinstance(error, Exception):
                raise
            # A panic in Rust is no Exception, and would end the event loop.
            raise RuntimeError(f"the tokeniser broke: {error!r}") from error
