"""The batcher of one model: turns concurrent texts into batches for its device.

Texts wait in two places, before and after tokenisation; both are bounded. Knows encoders and the device thread,
not requests, subjects or connections.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Protocol

import structlog

from models.encoders.base import Encoder, TextOptions, Tokens, batch_tokens
from models.errors import OutOfDeviceMemory, TextTooLong
from subjects.errors import Busy, DeadlinePassed, InvalidField, Unavailable

from .device_thread import DeviceThread
from .forward import Ran, forward
from .packing import like_oldest_within, oldest_within
from .tokenising import Lane
from .work import BatchLimits, Embedded, Finish, NonFinite, Work

log = structlog.get_logger(__name__)

LONG_CHARS = 20_000
"""A text with more characters than these waits in a lane of its own: it must not hold up the short ones."""
LINGER_S = 0.002
"""How long an idle device waits for the rest of a crowd."""
AHEAD_S = 0.002
"""How long before the device is free the next batch is handed to it."""


class BatchObserver(Protocol):
    """Who hears of every batch that ran."""

    def batch_ran(self, model: str, texts: int, tokens: int, computed: int, seconds: float) -> None: ...


class Batcher:
    """Coalesces texts of one model. `submit` hands them in, `run` works until it is cancelled."""

    def __init__(
        self, encoder: Encoder, device: DeviceThread, pool: Executor, limits: BatchLimits, observer: BatchObserver
    ) -> None:
        self.encoder = encoder
        self.budget_tokens = limits.budget_tokens
        self.queued_tokens = 0
        self._device = device
        self._pool = pool
        self._limits = limits
        self._observer = observer
        self._unfinished: set[Work] = set()
        self._short = Lane(encoder, pool, self._tokenized)
        self._long = Lane(encoder, pool, self._tokenized)
        self._ready: list[Work] = []
        self._ready_tokens = 0
        self._ready_waits = asyncio.Event()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._slots = asyncio.Semaphore(2)  # one batch runs, one waits at the device
        self._running = 0
        self._running_tokens = 0
        self._busy_until = 0.0
        self._crowd = 1.0
        self._token_s = 1e-4
        self._stopped = False

    def submit(
        self, texts: Sequence[str], options: TextOptions, finish: Finish, deadline: float, first_index: int = 0
    ) -> list[Work]:
        """Queue texts, all or none; each Work's future brings its Embedded.

        Raises Busy when they do not fit, Unavailable when nothing runs any more.
        """
        if self._stopped:
            raise Unavailable("this worker is shutting down; ask again", retry_after_ms=100)
        costs = self._estimates(texts)
        if not self.fits(len(texts), sum(costs)):
            raise Busy(
                f"this worker's queue for model {self.encoder.model!r} is full "
                f"({self.queued_texts} texts, {self.queued_tokens} tokens); try again later",
                retry_after_ms=self.retry_after_ms,
            )
        loop = asyncio.get_running_loop()
        now = loop.time()
        works = [
            Work(text, first_index + i, options, finish, deadline, now, cost, loop.create_future())
            for i, (text, cost) in enumerate(zip(texts, costs, strict=True))
        ]
        self._unfinished.update(works)
        self.queued_tokens += sum(costs)
        self._short.put(work for work in works if len(work.text) <= LONG_CHARS)
        self._long.put(work for work in works if len(work.text) > LONG_CHARS)
        return works

    def _estimates(self, texts: Sequence[str]) -> list[int]:
        """What each text costs until it is tokenised: a token a character, special tokens, and no more than fit."""
        return [min(len(text) + 2, self.encoder.max_tokens) for text in texts]

    def fits(self, texts: int, tokens: int) -> bool:
        """Whether so much more may wait. An empty queue takes anything, so that nothing is refused for ever."""
        fits_texts = self.queued_texts + texts <= self._limits.queue_texts
        return not self.queued_texts or (fits_texts and self.queued_tokens + tokens <= self._limits.queue_tokens)

    @property
    def queued_texts(self) -> int:
        """Texts that wait or run."""
        return len(self._unfinished)

    async def room(self, texts: Sequence[str]) -> None:
        """Return once these texts fit, or half the queue is free where they are more than that."""
        count = min(len(texts), self._limits.queue_texts // 2)
        tokens = min(sum(self._estimates(texts)), self._limits.queue_tokens // 2)
        while not self.fits(count, tokens):
            self._room.clear()
            await self._room.wait()

    @property
    def retry_after_ms(self) -> int:
        """When about half of what waits now will be done."""
        return int(min(10_000, max(50, 500 * self.queued_tokens * self._token_s)))

    async def run(self) -> None:
        """Tokenise and dispatch for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._short.run())
                group.create_task(self._long.run())
                group.create_task(self._dispatch(group))
        finally:
            self._stopped = True
            for work in self._unfinished:
                work.future.cancel()

    def _tokenized(self, work: Work, result: Tokens | Exception) -> None:
        if isinstance(result, TextTooLong):
            result.index = work.index
        if isinstance(result, Exception):
            self._fail(work, result)
        elif not len(result):
            self._fail(work, InvalidField(f"the model's tokeniser leaves nothing of text {work.index}; send another"))
        else:
            self.queued_tokens += len(result) - work.cost
            work.tokens, work.text, work.cost = result, "", len(result)
            self._push(work)

    # Between tokenisation and the device

    def _push(self, work: Work) -> None:
        self._ready.append(work)
        self._ready_tokens += work.cost
        self._ready_waits.set()
        if self._enough():
            self._changed.set()

    def _enough(self) -> bool:
        """A full batch waits; or, with an idle device, as much as can be expected to come together."""
        crowd_is_here = self._running == 0 and 2 * len(self._ready) >= self._crowd
        return crowd_is_here or self._ready_tokens >= self.budget_tokens

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._slots.acquire()
            batch: list[Work] = []
            while not batch:
                await self._ready_waits.wait()
                await self._fill()
                batch = self._take()
            tokens = self._cost(batch)
            self._running += 1
            self._running_tokens += tokens
            now = asyncio.get_running_loop().time()
            self._busy_until = max(now, self._busy_until) + tokens * self._token_s
            group.create_task(self._run(batch, tokens))

    async def _fill(self) -> None:
        """Wait for company where waiting costs nothing (the device is busy) or little (others were just here)."""
        while not self._enough():
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._patience()):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _patience(self) -> float:
        """Until when (loop time) the next batch may grow: just before the device is free, or a moment if it is."""
        if self._running:
            return self._busy_until - AHEAD_S
        return self._ready[0].arrived + LINGER_S

    def _take(self) -> list[Work]:
        """The next batch, the oldest text in it."""
        waiting = [work for work in self._ready if self._wanted(work)]
        if not waiting:
            self._keep(waiting)
            return []
        coming = len(self._short) + len(self._long)
        self._crowd += 0.5 * (self.queued_texts - coming - self._crowd)
        lengths = [work.cost for work in waiting]
        if self.encoder.packed:
            chosen = oldest_within(lengths, self.budget_tokens)
        else:
            chosen = like_oldest_within(lengths, self.budget_tokens, self._limits.overhead_tokens)
        left = set(range(len(waiting))).difference(chosen)
        self._keep([waiting[i] for i in sorted(left)])
        return [waiting[i] for i in chosen]

    def _keep(self, works: list[Work]) -> None:
        self._ready = works
        self._ready_tokens = sum(work.cost for work in works)
        if not works:
            self._ready_waits.clear()

    def _cost(self, batch: list[Work]) -> int:
        return batch_tokens(self.encoder, [work.cost for work in batch])

    def _wanted(self, work: Work) -> bool:
        """Whether anyone still waits for it; one that is not wanted is dropped."""
        if work.wanted():
            return True
        self._drop(work)
        return False

    def _drop(self, work: Work) -> None:
        self._fail(work, DeadlinePassed("the deadline passed while the text waited for the model"))

    # On the device

    async def _run(self, batch: list[Work], tokens: int) -> None:
        try:
            await self._attempt(batch)
        finally:
            self._running -= 1
            self._running_tokens -= tokens
            self._busy_until = asyncio.get_running_loop().time() + self._running_tokens * self._token_s
            self._slots.release()
            self._changed.set()

    async def _attempt(self, batch: list[Work]) -> None:
        try:
            ran = await self._device.run(forward, self.encoder, batch)
        except OutOfDeviceMemory as error:
            await self._shrink(batch, error)
        except Exception as error:
            await self._isolate(batch, error)
        else:
            self._resolve(batch, ran)

    async def _shrink(self, batch: list[Work], error: OutOfDeviceMemory) -> None:
        """Out of memory: remember half the budget and queue the batch again.

        Not for a batch cut to an older, larger budget, nor for a small one: there memory is short for another reason,
        and its members are tried one by one.
        """
        tokens = self._cost(batch)
        if len(batch) == 1 or tokens <= self.budget_tokens // 2:
            await self._isolate(batch, error)
            return
        if tokens <= self.budget_tokens:
            self.budget_tokens = tokens // 2
        log.warning("batch.out_of_memory", model=self.encoder.model, tokens=tokens, budget_tokens=self.budget_tokens)
        self._keep([*batch, *self._ready])
        self._ready_waits.set()

    async def _isolate(self, batch: list[Work], error: Exception) -> None:
        """A batch failed: run its members one by one, so that only the culprit fails."""
        log.warning("batch.failed", model=self.encoder.model, texts=len(batch), error=repr(error))
        if len(batch) == 1:
            self._fail(batch[0], error)
            return
        for work in batch:
            if self._wanted(work):
                await self._attempt([work])

    def _resolve(self, batch: list[Work], ran: Ran) -> None:
        if ran.computed:
            weight = 0.2 * min(1.0, ran.computed / self.budget_tokens)
            self._token_s += weight * (ran.seconds / ran.computed - self._token_s)
            self._observer.batch_ran(self.encoder.model, len(ran.vectors), ran.tokens, ran.computed, ran.seconds)
        for work in batch:
            if work not in ran.vectors:
                self._drop(work)
            elif (vector := ran.vectors[work]) is None:
                self._fail(work, NonFinite(self.encoder.model))
            else:
                if not work.future.done():
                    work.future.set_result(Embedded(vector, work.cost, work.tokens.truncated))
                self._release(work)

    def _fail(self, work: Work, error: Exception) -> None:
        if not work.future.done():
            work.future.set_exception(error)
        self._release(work)

    def _release(self, work: Work) -> None:
        self._unfinished.discard(work)
        self.queued_tokens -= work.cost
        self._room.set()
