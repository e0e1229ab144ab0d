"""The line that texts of one priority stand in, from their admission to their answers.

They wait in two places, before and after tokenisation; in the second one batches form. In both their sources take
turns. Knows one model's runner and tokeniser, not the other lines nor who asks.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from operator import attrgetter

from models.encoders.base import Tokens
from models.errors import TextTooLong
from models.fair_order import FairOrder
from subjects.errors import DeadlinePassed, InvalidField

from ..cost import Cost
from .batch_runner import BatchRunner, overdue
from .packing import like_oldest_within, oldest_within
from .tokenizer_queue import TokenizerQueue
from .work import Embedded, PendingText, Priority

LONG_CHARS = 20_000
"""A text with more characters than these waits in a lane of its own: it must not hold up the short ones."""
SLICE_CHARS = {"interactive": 262_144, "bulk": 16_384}
"""Characters that a job for the tokeniser takes on: all of a crowd at once, of bulk no more than some batches."""
LINGER_S = 0.002
"""How long an idle device waits for the rest of a crowd."""
LEARN = 0.02
"""Weight of the latest text in what is known of tokenising."""
AHEAD_S = 0.002
"""How long before the device is free the next batch is handed to it."""


class BatchQueue:
    """Texts of one priority. `put` hands them in, `run` works until it is cancelled; each future brings its Embedded.

    unfinished: those that wait or run; tokens: what they cost together. on_answered hears when they get fewer.
    """

    def __init__(
        self,
        runner: BatchRunner,
        pool: Executor,
        overhead_tokens: int,
        priority: Priority,
        on_answered: Callable[[], None],
    ) -> None:
        self.unfinished: set[PendingText] = set()
        self._turns = FairOrder()
        self._tokens_of: Counter[str] = Counter()
        self.tokens = 0
        self._estimated = 0
        self._tokens_per_estimate = 1.0
        self._batch_cost = Cost()  # from one batch's end to the next: with all that this takes, not on the device alone
        self._ended = 0.0
        self._runner = runner
        self._overhead_tokens = overhead_tokens
        self._urgent = priority == "interactive"
        self._on_answered = on_answered
        slice_chars = SLICE_CHARS[priority]
        self._short = TokenizerQueue(runner.encoder, pool, self._tokenized, slice_chars)
        self._long = TokenizerQueue(runner.encoder, pool, self._tokenized, slice_chars) if self._urgent else self._short
        self._lanes = {self._short, self._long}
        self._ready: list[PendingText] = []
        self._ready_tokens = 0
        self._ready_waits = asyncio.Event()
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(2)  # one batch runs, one waits at the device
        self._running = 0
        self._running_tokens = 0  # as a batch computes them
        self._running_cost = 0  # as texts have them
        self._running_since = 0.0
        self._busy_until = 0.0
        self._crowd = 1.0

    def put(self, works: list[PendingText]) -> None:
        """Let texts in at the end."""
        self.unfinished.update(works)
        for work in works:
            work.turn = self._turns.take(work.source, work.cost)
            self._tokens_of[work.source] += work.cost
        cost = sum(work.cost for work in works)
        self.tokens += cost
        self._estimated += cost
        self._short.put(work for work in works if len(work.text) <= LONG_CHARS)
        self._long.put(work for work in works if len(work.text) > LONG_CHARS)

    def ready_in_s(self, costs: Iterable[int], source: str | None = None) -> float:
        """When texts of these estimated costs would have their answers, were they put now; 0 where nothing waits.

        source: whose they are; None: they come behind all others. Of those each other source has its turns first, and
        no more of them than this one.
        """
        if not self.unfinished:
            return 0.0
        most = self._runner.encoder.max_tokens
        own = sum(min(most, self._tokens_per_estimate * cost) for cost in costs)
        waiting = self.tokens - self._estimated + self._tokens_per_estimate * self._estimated
        tokens = waiting + own
        if source is not None:
            sources = len(self._tokens_of) + (source not in self._tokens_of)
            its = self._tokens_of[source] / self.tokens * waiting + own
            tokens = min(tokens, self._running_cost + sources * its)
        return self._batch_cost.expected_s(tokens, math.ceil(tokens / self._runner.budget(self._urgent)))

    async def run(self) -> None:
        """Tokenise and dispatch for ever."""
        async with asyncio.TaskGroup() as group:
            for lane in self._lanes:
                group.create_task(lane.run())
            group.create_task(self._dispatch(group))

    def _answer(self, work: PendingText, outcome: Embedded | Exception) -> None:
        if not work.future.done():
            if isinstance(outcome, Exception):
                work.future.set_exception(outcome)
            else:
                work.future.set_result(outcome)
        self.unfinished.discard(work)
        self.tokens -= work.cost
        self._tokens_of[work.source] -= work.cost
        if not self._tokens_of[work.source]:
            del self._tokens_of[work.source]
        if not len(work.tokens):
            self._estimated -= work.cost
        self._on_answered()

    def _tokenized(self, work: PendingText, result: Tokens | Exception) -> None:
        if isinstance(result, TextTooLong):
            result.index = work.index
        if isinstance(result, Exception):
            self._answer(work, result)
        elif not len(result):
            nothing = f"the model's tokeniser leaves nothing of text {work.index}; send another"
            self._answer(work, InvalidField(nothing))
        else:
            self.tokens += len(result) - work.cost
            self._tokens_of[work.source] += len(result) - work.cost
            self._estimated -= work.cost
            self._tokens_per_estimate += LEARN * (len(result) / work.cost - self._tokens_per_estimate)
            work.tokens, work.text, work.cost = result, "", len(result)
            self._push(work)

    # Between tokenisation and the device

    def _push(self, work: PendingText) -> None:
        self._ready.append(work)
        self._ready_tokens += work.cost
        self._ready_waits.set()
        if self._enough():
            self._changed.set()

    def _enough(self) -> bool:
        """A full batch waits; or, with an idle device, as much as can be expected to come together."""
        crowd_is_here = self._running == 0 and 2 * len(self._ready) >= self._crowd
        return crowd_is_here or self._ready_tokens >= self._runner.budget(self._urgent)

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._slots.acquire()
            batch: list[PendingText] = []
            while not batch:
                await self._ready_waits.wait()
                await self._fill()
                batch = self._take()
            tokens = self._runner.cost(batch)
            now = asyncio.get_running_loop().time()
            if not self._running:
                self._running_since = now
            self._running += 1
            self._running_tokens += tokens
            self._running_cost += sum(work.cost for work in batch)
            self._busy_until = max(now, self._busy_until) + tokens * self._runner.token_s
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

    def _patience(self) -> float | None:
        """Until when (loop time) the next batch may grow: just before the device is free, or a moment if it is.

        How long a pass takes that gives way to others nobody can tell; its end is waited for.
        """
        if self._running:
            return self._busy_until - AHEAD_S if self._urgent else None
        return self._ready[0].arrived + LINGER_S

    def _take(self) -> list[PendingText]:
        """The next batch, with the text in it whose turn it is, and besides only texts of its task."""
        waiting = sorted((work for work in self._ready if self._wanted(work)), key=attrgetter("turn"))
        if not waiting:
            self._keep(waiting)
            return []
        coming = sum(len(lane) for lane in self._lanes)
        self._crowd += 0.5 * (len(self.unfinished) - coming - self._crowd)
        alike = [i for i, work in enumerate(waiting) if work.tokens.task == waiting[0].tokens.task]
        lengths = [waiting[i].cost for i in alike]
        budget = self._runner.budget(self._urgent)
        if self._runner.encoder.packed:
            chosen = oldest_within(lengths, budget)
        else:
            chosen = like_oldest_within(lengths, budget, self._overhead_tokens)
        batch = [waiting[alike[i]] for i in chosen]
        self._turns.go(waiting[0].turn, sum(work.cost for work in batch), len(self._tokens_of))
        going = set(batch)
        self._keep([work for work in waiting if work not in going])
        return batch

    def _keep(self, works: Iterable[PendingText]) -> None:
        self._ready = list(works)
        self._ready_tokens = sum(work.cost for work in self._ready)
        if self._ready:
            self._ready_waits.set()
        else:
            self._ready_waits.clear()

    def _wanted(self, work: PendingText) -> bool:
        """Whether anyone still waits for it, and it can be ready in time; else it is dropped.

        An idle device takes whatever it is given: how fast it is now, only running tells.
        """
        if not work.wanted():
            self._answer(work, overdue())
        elif self._running and self._ended_by(work.cost) > work.deadline:
            self._answer(work, DeadlinePassed("too much was before it: the text cannot be ready by its deadline"))
        else:
            return True
        return False

    def _ended_by(self, cost: int) -> float:
        """When a text would have its answer that ran next, in loop time.

        Not by what a token takes on the device alone: many small batches make that much too much for a full one.
        """
        now = asyncio.get_running_loop().time()
        free = self._running_since + self._batch_cost.expected_s(self._running_cost, self._running)
        return max(now, min(free, self._busy_until)) + self._batch_cost.expected_s(cost)

    async def _run(self, batch: list[PendingText], tokens: int) -> None:
        loop, cost = asyncio.get_running_loop(), sum(work.cost for work in batch)
        try:
            if again := await self._runner.run(batch, self._answer, self._urgent):
                self._keep([*again, *self._ready])
            elif ran := sum(work.cost for work in batch if _has_run(work)):
                self._batch_cost.took(ran, loop.time() - max(self._ended, batch[0].arrived))
        finally:
            self._ended = self._running_since = loop.time()
            self._running -= 1
            self._running_tokens -= tokens
            self._running_cost -= cost
            self._busy_until = self._ended + self._running_tokens * self._runner.token_s
            self._slots.release()
            self._changed.set()


def _has_run(work: PendingText) -> bool:
    """Whether it has its vector: what nobody wanted any more, and what failed, tells nothing of the others."""
    return not work.future.cancelled() and work.future.exception() is None
