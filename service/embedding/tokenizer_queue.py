"""Texts on their way to tokens: a queue, and one job at a time in the tokenizers' pool."""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import groupby

import structlog

from models.encoders.base import Encoder, Text, TextOptions, Tokens
from models.errors import TextTooLong
from subjects.errors import DeadlinePassed

from ..runtime.panics import panics_as_errors
from .pending_text import PendingText

log = structlog.get_logger(__name__)

Deliver = Callable[[PendingText, "Tokens | Exception"], None]


@dataclass(slots=True, eq=False)
class TokenizerQueue:
    """Texts that wait for the tokenizer, by their turns; each is delivered with its tokens or its error.

    job_chars: characters that one job takes, unless its first text alone has more.
    """

    encoder: Encoder
    pool: Executor
    deliver: Deliver
    job_chars: int
    _waiting: list[tuple[float, int, PendingText]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _any: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, texts: Iterable[PendingText]) -> None:
        for text in texts:
            heappush(self._waiting, (text.start_tag, next(self._numbers), text))
        if self._waiting:
            self._any.set()

    async def run(self) -> None:
        """Tokenize for ever."""
        while True:
            await self._any.wait()
            for options, texts in groupby(self._next_job(), key=lambda text: text.params.options):
                await self._tokenize(list(texts), options)

    def _next_job(self) -> list[PendingText]:
        texts: list[PendingText] = []
        chars = 0
        while self._waiting and (not texts or chars + len(self._waiting[0][2].text) <= self.job_chars):
            _, _, text = heappop(self._waiting)
            if text.wanted():
                texts.append(text)
                chars += len(text.text)
            else:
                self.deliver(text, DeadlinePassed("the deadline passed while the text waited for the tokeniser"))
        if not self._waiting:
            self._any.clear()
        return texts

    async def _tokenize(self, pending: list[PendingText], options: TextOptions) -> None:
        """One job; if it fails, each text on its own, so that only the culprit fails."""
        texts = [text.text for text in pending]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self.pool, self._job, texts, options)
        except Exception as error:
            log.warning("tokenising.failed", model=self.encoder.model, texts=len(texts), error=type(error).__name__)
            if len(pending) == 1:
                self.deliver(pending[0], error)
                return
            for text in pending:
                await self._tokenize([text], options)
        else:
            for text, result in zip(pending, results, strict=True):
                self.deliver(text, result)

    def _job(self, texts: Sequence[Text], options: TextOptions) -> list[Tokens | TextTooLong]:
        with panics_as_errors("the tokeniser"):
            return self.encoder.tokenize(texts, options)
