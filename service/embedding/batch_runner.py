"""A model's batches on the device: each text of a batch is answered, and of one that fails only the culprit suffers.

Owns what running them teaches: how large a batch may be, and how long a token takes. Knows no queue.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from models.encoders.base import Encoder, batch_tokens
from models.errors import DeviceFailed, OutOfDeviceMemory
from subjects.errors import DeadlinePassed

from ..runtime.device_thread import DeviceThread
from .forward import BatchResult, forward
from .work import Embedded, NonFinite, PendingText

log = structlog.get_logger(__name__)

HOLD_S = 0.1
"""How long a bulk pass should hold the device between two stops: a person hardly notices."""
LEAST_TOKENS = 128
"""No bulk batch is made smaller than this for it; a text that somebody waits for takes about as long."""
GROW_S = 60.0
GROWTH = 1.25
"""How often, and how much, a budget that memory once was too short for grows again."""

Answer = Callable[[PendingText, "Embedded | Exception"], None]


class BatchObserver(Protocol):
    """Who hears of every batch that ran."""

    def batch_ran(self, model: str, texts: int, tokens: int, computed: int, seconds: float) -> None: ...


class BatchRunner:
    """Runs batches of one model. budget_tokens: what one may compute; token_s: seconds that a computed token takes."""

    def __init__(self, encoder: Encoder, device: DeviceThread, observer: BatchObserver, budget_tokens: int) -> None:
        self.encoder = encoder
        self.budget_tokens = budget_tokens
        self.token_s = 1e-4
        self._most_tokens = budget_tokens
        self._budget_since = -math.inf
        self._held_token_s = 0.0
        self._device = device
        self._observer = observer

    def budget(self, urgent: bool) -> int:
        """What the next batch may compute, in tokens.

        In bulk, no more than reaches the next stop in time: a large model's layers take long, some models have no
        stops, and a GPU that is handed all layers at once does not stop between them.
        """
        if urgent or not self._held_token_s:
            return self.budget_tokens
        return min(self.budget_tokens, max(LEAST_TOKENS, int(HOLD_S / self._held_token_s)))

    def cost(self, batch: Sequence[PendingText]) -> int:
        """Tokens that a batch computes."""
        return batch_tokens(self.encoder, [work.cost for work in batch])

    async def run(self, batch: list[PendingText], answer: Answer, urgent: bool) -> list[PendingText]:
        """Run a batch, inside another where it is urgent -> those to be run again, in smaller ones."""
        give_way = None if urgent else self._device.yield_point
        try:
            ran = await self._device.run(forward, self.encoder, batch, give_way, urgent=urgent)
        except DeviceFailed:
            raise  # ends the batcher, and with it the worker
        except OutOfDeviceMemory as error:
            if not urgent:
                return await self._shrink(batch, answer, error)
        except Exception as error:
            await self._isolate(batch, answer, urgent, error)
            return []
        else:
            self._resolve(batch, answer, ran)
            return []
        # It may have run inside another pass, which takes memory too: once more, when its turn comes.
        return await self.run(batch, answer, urgent=False)

    async def _shrink(self, batch: list[PendingText], answer: Answer, error: OutOfDeviceMemory) -> list[PendingText]:
        """Out of memory: remember half the budget, and run the batch again.

        Not for a batch cut to an older, larger budget, nor for a small one: there memory is short for another reason,
        and its members are tried one by one.
        """
        tokens = self.cost(batch)
        if len(batch) == 1 or tokens <= self.budget_tokens // 2:
            await self._isolate(batch, answer, False, error)
            return []
        if tokens <= self.budget_tokens:
            self._set_budget(tokens // 2)
        log.warning("batch.out_of_memory", model=self.encoder.model, tokens=tokens, budget_tokens=self.budget_tokens)
        return batch

    def _set_budget(self, tokens: int) -> None:
        self.budget_tokens = min(tokens, self._most_tokens)
        self._budget_since = asyncio.get_running_loop().time()

    def _grow(self, computed: int) -> None:
        """Let the budget grow again, slowly, while batches use it: what took the memory may be gone."""
        due = asyncio.get_running_loop().time() - self._budget_since >= GROW_S
        if self.budget_tokens < self._most_tokens and computed >= self.budget_tokens / 2 and due:
            self._set_budget(math.ceil(self.budget_tokens * GROWTH))

    async def _isolate(self, batch: list[PendingText], answer: Answer, urgent: bool, error: Exception) -> None:
        """A batch failed: run its members one by one, so that only the culprit fails."""
        log.warning("batch.failed", model=self.encoder.model, texts=len(batch), error=repr(error))
        if len(batch) == 1:
            answer(batch[0], error)
            return
        for work in batch:
            await self.run([work], answer, urgent)

    def _resolve(self, batch: list[PendingText], answer: Answer, ran: BatchResult) -> None:
        if ran.computed:
            self._learn(ran)
            self._grow(ran.computed)
            self._observer.batch_ran(self.encoder.model, len(ran.vectors), ran.tokens, ran.computed, ran.seconds)
        for work in batch:
            if work not in ran.vectors:
                answer(work, overdue())
            elif (vector := ran.vectors[work]) is None:
                answer(work, NonFinite(self.encoder.model))
            else:
                answer(work, Embedded(vector, work.cost, work.tokens.truncated))

    def _learn(self, ran: BatchResult) -> None:
        weight = 0.2 * min(1.0, ran.computed / self.budget(ran.held_s is None))
        self.token_s += weight * (ran.seconds / ran.computed - self.token_s)
        if ran.held_s is not None:
            self._held_token_s += weight * (ran.held_s / ran.computed - self._held_token_s)


def overdue() -> DeadlinePassed:
    """What a text is answered that nobody ran in time."""
    return DeadlinePassed("the deadline passed while the text waited for the model")
