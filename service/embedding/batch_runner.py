"""A model's batches on the device: each text of a batch gets its answer, and if a batch fails only the culprit fails.

It learns from them how large a batch may be, and how long a token takes.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from traceback import clear_frames

import numpy as np
import structlog

from models.encoders.base import Encoder, Vectors, batch_tokens, finish
from models.errors import DeviceFailed, OutOfDeviceMemory
from subjects.errors import DeadlinePassed

from ..runtime.device_thread import DeviceThread
from ..telemetry import Telemetry
from .pending_text import Embedded, PendingText

log = structlog.get_logger(__name__)

YIELD_S = 0.1
"""The longest time between two yield points of a bulk pass, which a person hardly notices."""
LEAST_TOKENS = 128
"""The lower limit of a bulk batch that is cut to meet YIELD_S; an interactive text takes about as long."""
GROW_S = 60.0
GROWTH = 1.25
"""After out-of-memory the budget grows by GROWTH every GROW_S."""

Answer = Callable[[PendingText, "Embedded | Exception"], None]


class NonFinite(Exception):
    """The model gave a vector with NaN or infinity."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of a pass.

    vectors: None for NaN or infinity; texts that nobody wanted any more are absent. tokens, computed: of the texts, and
    with the padding that the model computed too. seconds: on the device. longest_s: the longest time between two yield
    points, None if the pass had none.
    """

    vectors: dict[PendingText, Vectors | None] = field(default_factory=dict)
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    longest_s: float | None = None


class BatchRunner:
    """Runs batches of one model. budget_tokens: what one may compute; token_s: seconds for a computed token."""

    def __init__(self, encoder: Encoder, device: DeviceThread, telemetry: Telemetry, budget_tokens: int) -> None:
        self.encoder = encoder
        self.budget_tokens = budget_tokens
        self.token_s = 1e-4
        self._most_tokens = budget_tokens
        self._budget_since = -math.inf
        self._unyielding_token_s = 0.0
        self._device = device
        self._telemetry = telemetry

    def budget(self, urgent: bool) -> int:
        """What the next batch may compute, in tokens.

        A bulk batch is cut so that it takes at most YIELD_S to the next yield point. That matters for large models, for
        models without yield points, and on a GPU, which does not stop between queued layers.
        """
        if urgent or not self._unyielding_token_s:
            return self.budget_tokens
        return min(self.budget_tokens, max(LEAST_TOKENS, int(YIELD_S / self._unyielding_token_s)))

    def computed_tokens(self, batch: Sequence[PendingText]) -> int:
        """Tokens that a batch computes, padding included."""
        return batch_tokens(self.encoder, [text.cost for text in batch])

    async def run(self, batch: list[PendingText], answer: Answer, urgent: bool) -> list[PendingText]:
        """Run a batch, an urgent one inside another -> the texts to be run again, in smaller batches."""
        give_way = None if urgent else self._device.yield_point
        try:
            result = await self._device.run(forward, self.encoder, batch, give_way, urgent=urgent)
        except DeviceFailed:
            raise  # ends the batcher, and with it the worker
        except OutOfDeviceMemory as error:
            if not urgent:
                return await self._shrink(batch, answer, error)
        except Exception as error:
            await self._isolate(batch, answer, urgent, error)
            return []
        else:
            self._resolve(batch, answer, result)
            return []
        # It may have run inside another pass, which takes memory too: once more, when its turn comes.
        return await self.run(batch, answer, urgent=False)

    async def _shrink(self, batch: list[PendingText], answer: Answer, error: OutOfDeviceMemory) -> list[PendingText]:
        """Out of memory: remember half the budget, and run the batch again.

        A batch of at most half the budget is short of memory for another reason: its texts are tried one by one. A
        batch that was cut to an older, larger budget is only run again.
        """
        tokens = self.computed_tokens(batch)
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

    async def _isolate(self, batch: list[PendingText], answer: Answer, urgent: bool, error: Exception) -> None:
        """Run the members of a batch that failed one by one, so that only the culprit fails."""
        log.warning("batch.failed", model=self.encoder.model, texts=len(batch), error=repr(error))
        if len(batch) == 1:
            answer(batch[0], error)
            return
        for text in batch:
            await self.run([text], answer, urgent)

    def _resolve(self, batch: list[PendingText], answer: Answer, result: BatchResult) -> None:
        if result.computed:
            self._learn(result)
            figures = len(result.vectors), result.tokens, result.computed, result.seconds
            self._telemetry.batch_ran(self.encoder.model, *figures)
        for text in batch:
            if text not in result.vectors:
                answer(text, overdue())
            elif (vector := result.vectors[text]) is None:
                answer(text, NonFinite(self.encoder.model))
            else:
                answer(text, Embedded(vector, text.cost, text.tokens.truncated))

    def _learn(self, result: BatchResult) -> None:
        computed = result.computed
        weight = 0.2 * min(1.0, computed / self.budget(result.longest_s is None))
        self.token_s += weight * (result.seconds / computed - self.token_s)
        if result.longest_s is not None:
            self._unyielding_token_s += weight * (result.longest_s / computed - self._unyielding_token_s)
        # A budget that memory was too short for grows while batches use it: what took the memory may be gone.
        due = asyncio.get_running_loop().time() - self._budget_since >= GROW_S
        if self.budget_tokens < self._most_tokens and computed >= self.budget_tokens / 2 and due:
            self._set_budget(math.ceil(self.budget_tokens * GROWTH))


class _NothingWanted(Exception):
    """Nobody waits for any text of the batch any more."""


class _YieldPoint:
    """Called between the layers of a pass that gives way to others.

    away_s: seconds that the others took. longest_s: the longest time between two calls.
    """

    def __init__(self, batch: Sequence[PendingText], give_way: Callable[[], None]) -> None:
        self._batch = batch
        self._give_way = give_way
        self._resumed = time.perf_counter()
        self.away_s = 0.0
        self.longest_s = 0.0

    def __call__(self) -> None:
        left = self.reached()
        self._give_way()
        self._resumed = time.perf_counter()
        self.away_s += self._resumed - left
        if not any(text.wanted() for text in self._batch):
            raise _NothingWanted

    def reached(self) -> float:
        """End the stretch since the last call -> now, in seconds of the performance counter."""
        now = time.perf_counter()
        self.longest_s = max(self.longest_s, now - self._resumed)
        return now


def forward(encoder: Encoder, batch: Sequence[PendingText], give_way: Callable[[], None] | None = None) -> BatchResult:
    """Run the texts of a batch that are still wanted, on the device's thread. Raises what the encoder raises.

    give_way: called between the layers; if given, the pass also ends there once nobody waits for it.
    """
    started = time.perf_counter()
    wanted = [text for text in batch if text.wanted()]
    if not wanted:
        return BatchResult()
    yield_point = _YieldPoint(wanted, give_way) if give_way else None
    try:
        pooled = encoder.encode([text.tokens for text in wanted], yield_point)
    except _NothingWanted:
        return BatchResult()
    except OutOfDeviceMemory as error:
        _clear_frames(error)
        raise
    finite = np.isfinite(np.abs(pooled).max(axis=1))  # NaN and infinity both survive the maximum
    finished = _finish(wanted, np.where(finite[:, None], pooled, np.float32(0)))
    vectors = {text: vector if good else None for text, vector, good in zip(wanted, finished, finite, strict=True)}
    lengths = [text.cost for text in wanted]
    tokens, computed = sum(lengths), batch_tokens(encoder, lengths)
    if yield_point is None:
        return BatchResult(vectors, tokens, computed, time.perf_counter() - started)
    seconds = yield_point.reached() - started - yield_point.away_s
    return BatchResult(vectors, tokens, computed, seconds, yield_point.longest_s)


def _clear_frames(error: BaseException | None) -> None:
    """The frames of a failed pass hold its tensors, and with them the memory that the next try needs."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__


def _finish(batch: Sequence[PendingText], pooled: Vectors) -> list[Vectors]:
    """Each row of pooled (B, D), finished as its text asks."""
    finished: list[Vectors] = []
    for how, rows in groupby(range(len(batch)), key=lambda i: batch[i].params.finish):
        run = list(rows)
        finished += list(finish(pooled[run[0] : run[-1] + 1], how.normalize, how.dimensions))
    return finished


def overdue() -> DeadlinePassed:
    """The error for a text that nobody ran in time."""
    return DeadlinePassed("the deadline passed while the text waited for the model")
