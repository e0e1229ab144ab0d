"""The queue of one priority: texts from their admission to their vectors.

Texts wait twice: for the tokenizer, and for the device, where batches form. In both places their callers take turns.
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
from subjects.names import Priority

from ..admission import LinearCost
from .batch_runner import BatchRunner, overdue
from .packing import first_within, like_first_within
from .pending_text import Embedded, PendingText
from .tokenizer_queue import TokenizerQueue

LONG_CHARS = 20_000
"""A text with more characters waits in a tokenizer queue of its own, so that it does not hold up short ones."""
JOB_CHARS = {"interactive": 262_144, "bulk": 16_384}
"""Characters of one job for the tokenizer: all concurrent interactive texts, but only some batches of bulk."""
BATCH_WAIT_S = 0.002
"""How long an idle device waits for the other requests of concurrent callers."""
LEARN = 0.02
"""Weight of the latest text in the average of tokens for each estimated token."""
AHEAD_S = 0.002
"""How long before the device is free the next batch is handed to it."""


class BatchQueue:
    """Texts of one priority. `put` adds them, `run` works until cancelled; the future of each brings its Embedded.

    unfinished: texts that wait or run; tokens: their cost together. on_answered: called when one has its answer.
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
        self.tokens = 0
        self._order = FairOrder()
        self._tokens_of: Counter[str] = Counter()  # by caller
        self._estimated = 0  # the part of `tokens` that is estimated
        self._tokens_per_estimate = 1.0
        self._batch_cost = LinearCost()  # from one batch's end to the next one's: not on the device alone
        self._ended = 0.0
        self._runner = runner
        self._overhead_tokens = overhead_tokens
        self._urgent = priority == "interactive"
        self._on_answered = on_answered
        job_chars = JOB_CHARS[priority]
        self._short = TokenizerQueue(runner.encoder, pool, self._tokenized, job_chars)
        self._long = TokenizerQueue(runner.encoder, pool, self._tokenized, job_chars) if self._urgent else self._short
        self._tokenizer_queues = {self._short, self._long}
        self._ready: list[PendingText] = []
        self._ready_tokens = 0
        self._ready_waits = asyncio.Event()
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(2)  # one batch runs, one waits at the device
        self._running = 0
        self._running_computed = 0  # tokens, padding included
        self._running_tokens = 0
        self._running_since = 0.0
        self._busy_until = 0.0
        self._usual_concurrency = 1.0

    def put(self, texts: list[PendingText]) -> None:
        """Add texts at the end."""
        self.unfinished.update(texts)
        for text in texts:
            caller = text.params.caller
            text.start_tag = self._order.take(caller, text.cost)
            self._tokens_of[caller] += text.cost
        cost = sum(text.cost for text in texts)
        self.tokens += cost
        self._estimated += cost
        self._short.put(text for text in texts if len(text.text) <= LONG_CHARS)
        self._long.put(text for text in texts if len(text.text) > LONG_CHARS)

    def ready_in_s(self, costs: Iterable[int], caller: str | None = None) -> float:
        """When texts of these estimated costs would have their answers if they were put now; 0 if nothing waits.

        caller: of the texts. Each other caller is assumed to get at most as much as this one before them. None: they
        come after all others.
        """
        if not self.unfinished:
            return 0.0
        most = self._runner.encoder.max_tokens
        own = sum(min(most, self._tokens_per_estimate * cost) for cost in costs)
        waiting = self.tokens - self._estimated + self._tokens_per_estimate * self._estimated
        tokens = waiting + own
        if caller is not None:
            callers = len(self._tokens_of) + (caller not in self._tokens_of)
            of_caller = self._tokens_of[caller] / self.tokens * waiting + own
            tokens = min(tokens, self._running_tokens + callers * of_caller)
        return self._batch_cost.expected_s(tokens, math.ceil(tokens / self._runner.budget(self._urgent)))

    async def run(self) -> None:
        """Tokenize and run batches for ever."""
        async with asyncio.TaskGroup() as group:
            for queue in self._tokenizer_queues:
                group.create_task(queue.run())
            group.create_task(self._dispatch(group))

    def _answer(self, text: PendingText, outcome: Embedded | Exception) -> None:
        if not text.future.done():
            if isinstance(outcome, Exception):
                text.future.set_exception(outcome)
            else:
                text.future.set_result(outcome)
        self.unfinished.discard(text)
        self._add_cost(text, -text.cost)
        if not self._tokens_of[text.params.caller]:
            del self._tokens_of[text.params.caller]
        if not len(text.tokens):
            self._estimated -= text.cost
        self._on_answered()

    def _add_cost(self, text: PendingText, tokens: int) -> None:
        self.tokens += tokens
        self._tokens_of[text.params.caller] += tokens

    def _tokenized(self, text: PendingText, result: Tokens | Exception) -> None:
        if isinstance(result, TextTooLong):
            result.index = text.index
        if isinstance(result, Exception):
            self._answer(text, result)
        elif not len(result):
            nothing = f"the model's tokeniser leaves nothing of text {text.index}; send another"
            self._answer(text, InvalidField(nothing))
        else:
            self._add_cost(text, len(result) - text.cost)
            self._estimated -= text.cost
            self._tokens_per_estimate += LEARN * (len(result) / text.cost - self._tokens_per_estimate)
            text.tokens, text.text, text.cost = result, "", len(result)
            self._ready.append(text)
            self._ready_tokens += text.cost
            self._ready_waits.set()
            if self._is_enough():
                self._changed.set()

    # From the tokenizer to the device

    def _is_enough(self) -> bool:
        """Whether a full batch waits; or, at an idle device, as much as can be expected to come together."""
        all_are_here = self._running == 0 and 2 * len(self._ready) >= self._usual_concurrency
        return all_are_here or self._ready_tokens >= self._runner.budget(self._urgent)

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._slots.acquire()
            batch: list[PendingText] = []
            while not batch:
                await self._ready_waits.wait()
                await self._fill()
                batch = self._take()
            computed = self._runner.computed_tokens(batch)
            now = asyncio.get_running_loop().time()
            if not self._running:
                self._running_since = now
            self._running += 1
            self._running_computed += computed
            self._running_tokens += sum(text.cost for text in batch)
            self._busy_until = max(now, self._busy_until) + computed * self._runner.token_s
            group.create_task(self._run(batch, computed))

    async def _fill(self) -> None:
        """Wait for more texts while that costs nothing (the device is busy) or little (others were just here)."""
        while not self._is_enough():
            self._changed.clear()
            try:
                async with asyncio.timeout_at(self._fill_until()):
                    await self._changed.wait()
            except TimeoutError:
                return

    def _fill_until(self) -> float | None:
        """Until when (loop time) the next batch may grow: just before the device is free, or briefly if it is.

        A bulk pass can be interrupted, so its length is unknown: this waits for its end.
        """
        if self._running:
            return self._busy_until - AHEAD_S if self._urgent else None
        return self._ready[0].arrived + BATCH_WAIT_S

    def _take(self) -> list[PendingText]:
        """The next batch: the text with the lowest start tag, and others of the same task."""
        waiting = sorted((text for text in self._ready if self._is_in_time(text)), key=attrgetter("start_tag"))
        if not waiting:
            self._set_ready(waiting)
            return []
        at_tokenizer = sum(map(len, self._tokenizer_queues))
        self._usual_concurrency += 0.5 * (len(self.unfinished) - at_tokenizer - self._usual_concurrency)
        alike = [i for i, text in enumerate(waiting) if text.tokens.task == waiting[0].tokens.task]
        lengths = [waiting[i].cost for i in alike]
        budget = self._runner.budget(self._urgent)
        if self._runner.encoder.packed:
            chosen = first_within(lengths, budget)
        else:
            chosen = like_first_within(lengths, budget, self._overhead_tokens)
        batch = [waiting[alike[i]] for i in chosen]
        self._order.serve(waiting[0].start_tag, sum(text.cost for text in batch), len(self._tokens_of))
        taken = set(batch)
        self._set_ready([text for text in waiting if text not in taken])
        return batch

    def _set_ready(self, texts: list[PendingText]) -> None:
        self._ready = texts
        self._ready_tokens = sum(text.cost for text in texts)
        if texts:
            self._ready_waits.set()
        else:
            self._ready_waits.clear()

    def _is_in_time(self, text: PendingText) -> bool:
        """Whether a text is still wanted and can be ready by its deadline; else it is answered.

        An idle device takes any text: its speed is unknown until it runs one.
        """
        if not text.wanted():
            self._answer(text, overdue())
        elif self._running and self._ends_at(text.cost) > text.params.deadline:
            self._answer(text, DeadlinePassed("too much was before it: the text cannot be ready by its deadline"))
        else:
            return True
        return False

    def _ends_at(self, cost: int) -> float:
        """When a text would have its answer if it ran next, in loop time.

        The device time for each token alone would overestimate a full batch after many small ones.
        """
        now = asyncio.get_running_loop().time()
        free = self._running_since + self._batch_cost.expected_s(self._running_tokens, self._running)
        return max(now, min(free, self._busy_until)) + self._batch_cost.expected_s(cost)

    async def _run(self, batch: list[PendingText], computed: int) -> None:
        loop, tokens = asyncio.get_running_loop(), sum(text.cost for text in batch)
        try:
            if again := await self._runner.run(batch, self._answer, self._urgent):
                self._set_ready([*again, *self._ready])
            elif ran := sum(text.cost for text in batch if _has_vector(text)):
                self._batch_cost.observe(ran, loop.time() - max(self._ended, batch[0].arrived))
        finally:
            self._ended = self._running_since = loop.time()
            self._running -= 1
            self._running_computed -= computed
            self._running_tokens -= tokens
            self._busy_until = self._ended + self._running_computed * self._runner.token_s
            self._slots.release()
            self._changed.set()


def _has_vector(text: PendingText) -> bool:
    """Whether it was computed: the time of a batch is learned only from texts that were."""
    return not text.future.cancelled() and text.future.exception() is None
