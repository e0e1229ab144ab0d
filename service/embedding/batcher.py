"""The batcher of one model: admits texts, or refuses them, and lets each priority's line turn them into batches.

Knows encoders and the device thread, not requests, subjects or connections.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from models.encoders.base import Encoder, TextOptions
from subjects.errors import Busy, Unavailable

from ..busy import MARGIN, milliseconds
from ..runtime.device_thread import DeviceThread
from .batch_queue import BatchQueue
from .batch_runner import BatchObserver, BatchRunner
from .work import BatchLimits, Finish, PendingText, Priority


class Batcher:
    """Coalesces texts of one model. `submit` hands them in, `run` works until it is cancelled.

    Bulk waits in a line of its own, with room of its own: it takes none from a person who waits, and none is taken.
    """

    def __init__(
        self, encoder: Encoder, device: DeviceThread, pool: Executor, limits: BatchLimits, observer: BatchObserver
    ) -> None:
        self.encoder = encoder
        self._limits = limits
        self._runner = BatchRunner(encoder, device, observer, limits.budget_tokens)
        self._room = asyncio.Event()
        self._lines: dict[Priority, BatchQueue] = {
            "interactive": BatchQueue(self._runner, pool, limits.overhead_tokens, "interactive", self._room.set),
            "bulk": BatchQueue(self._runner, pool, limits.overhead_tokens, "bulk", self._room.set),
        }
        self._stopped = False

    @property
    def budget_tokens(self) -> int:
        """What a batch computes at most; less than was set, once memory fell short."""
        return self._runner.budget_tokens

    @property
    def queued_texts(self) -> int:
        """Texts that wait or run."""
        return sum(len(line.unfinished) for line in self._lines.values())

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or run; of a text that is not tokenised yet, an estimate."""
        return sum(line.tokens for line in self._lines.values())

    def submit(
        self,
        texts: Sequence[str],
        options: TextOptions,
        finish: Finish,
        deadline: float,
        first_index: int = 0,
        priority: Priority = "interactive",
        source: str = "",
    ) -> list[PendingText]:
        """Queue texts, all or none; each Work's future brings its Embedded. source: who takes turns with others.

        Raises Busy when they do not fit, Unavailable when nothing runs any more.
        """
        if self._stopped:
            raise Unavailable("this worker is shutting down; ask again", retry_after_ms=100)
        costs = self.estimates(texts)
        if not self.fits(len(texts), sum(costs), priority):
            raise self._full(priority)
        loop = asyncio.get_running_loop()
        now = loop.time()
        works = [
            PendingText(text, first_index + i, options, finish, deadline, now, cost, loop.create_future(), source)
            for i, (text, cost) in enumerate(zip(texts, costs, strict=True))
        ]
        self._lines[priority].put(works)
        return works

    @property
    def window_tokens(self) -> int:
        """How much of one request should wait at a time, so that two windows of two requests fit."""
        return max(1, self._limits.queue_tokens // 4)

    def estimates(self, texts: Sequence[str]) -> list[int]:
        """What each text costs until it is tokenised: a token a character, special tokens, and no more than fit."""
        return [min(len(text) + 2, self.encoder.max_tokens) for text in texts]

    def fits(self, texts: int, tokens: int, priority: Priority = "interactive") -> bool:
        """Whether so much more may wait. An empty queue takes anything, so that nothing is refused for ever."""
        line = self._lines[priority]
        fits_texts = len(line.unfinished) + texts <= self._limits.queue_texts
        return not line.unfinished or (fits_texts and line.tokens + tokens <= self._limits.queue_tokens)

    async def room(self, texts: Sequence[str], priority: Priority = "interactive") -> None:
        """Return once these texts fit."""
        tokens = sum(self.estimates(texts))
        while not self.fits(len(texts), tokens, priority):
            self._room.clear()
            await self._room.wait()

    def ready_in_s(self, chars: int, source: str | None = None) -> float:
        """When a text of so many characters that somebody waits for would have its answer; 0 where nothing waits."""
        return self._lines["interactive"].ready_in_s([min(chars + 2, self.encoder.max_tokens)], source)

    def require_time(
        self, texts: Sequence[str], deadline: float, priority: Priority = "interactive", source: str | None = None
    ) -> None:
        """Refuse texts that would be late, whatever they would cost: others are in time instead. Raises Busy."""
        ready_s = MARGIN * self._lines[priority].ready_in_s(self.estimates(texts), source)
        left_s = deadline - asyncio.get_running_loop().time()
        if ready_s > left_s > 0:
            raise Busy(
                f"this worker's {priority} queue for model {self.encoder.model!r} takes {ready_s:.1f} s now, "
                f"which is past the deadline; try again later",
                retry_after_ms=milliseconds(ready_s - left_s),
            )

    def _full(self, priority: Priority) -> Busy:
        """With the time in which about half of what waits now will be done."""
        line = self._lines[priority]
        return Busy(
            f"this worker's {priority} queue for model {self.encoder.model!r} is full "
            f"({len(line.unfinished)} texts, {line.tokens} tokens); try again later",
            retry_after_ms=milliseconds(line.ready_in_s([]) / 2),
        )

    async def run(self) -> None:
        """Tokenise and dispatch for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                for line in self._lines.values():
                    group.create_task(line.run())
        finally:
            self._stopped = True
            for line in self._lines.values():
                for work in line.unfinished:
                    work.future.cancel()
