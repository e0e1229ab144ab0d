"""The batcher of one model: admits texts, or refuses them, and has a queue for each priority form batches of them."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor

from models.encoders.base import Encoder, Text
from subjects.errors import Busy
from subjects.names import Priority

from ..admission import past_deadline, retry_after_ms, shutting_down
from ..runtime.device_thread import DeviceThread
from ..telemetry import Telemetry
from .batch_queue import BatchQueue
from .batch_runner import BatchRunner
from .pending_text import BatchLimits, EmbedParams, PendingText


class Batcher:
    """`submit` queues texts of one model, `run` works until it is cancelled.

    Bulk texts have a queue and limits of their own: neither priority takes places from the other.
    """

    def __init__(
        self, encoder: Encoder, device: DeviceThread, pool: Executor, limits: BatchLimits, telemetry: Telemetry
    ) -> None:
        self.encoder = encoder
        self._limits = limits
        self._runner = BatchRunner(encoder, device, telemetry, limits.budget_tokens)
        self._answered = asyncio.Event()
        self._queues: dict[Priority, BatchQueue] = {
            "interactive": BatchQueue(self._runner, pool, limits.overhead_tokens, "interactive", self._answered.set),
            "bulk": BatchQueue(self._runner, pool, limits.overhead_tokens, "bulk", self._answered.set),
        }
        self._stopped = False

    @property
    def budget_tokens(self) -> int:
        """What a batch computes at most; less than was set once memory fell short."""
        return self._runner.budget_tokens

    @property
    def queued_texts(self) -> int:
        """Texts that wait or run."""
        return sum(len(queue.unfinished) for queue in self._queues.values())

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait or run; estimated for texts that are not tokenized yet."""
        return sum(queue.tokens for queue in self._queues.values())

    @property
    def window_tokens(self) -> int:
        """How much of one request should wait at a time, so that two windows of two requests fit."""
        return max(1, self._limits.queue_tokens // 4)

    def estimates(self, texts: Sequence[Text]) -> list[int]:
        """The cost of each text until it is tokenized: len(text) + 2, at most the model's max_tokens."""
        return [min(len(text) + 2, self.encoder.max_tokens) for text in texts]

    def submit(self, texts: Sequence[Text], params: EmbedParams, first_index: int = 0) -> list[PendingText]:
        """Queue texts, all or none; the future of each brings its Embedded.

        Raises Busy if they do not fit, Unavailable once the batcher has ended.
        """
        if self._stopped:
            raise shutting_down()
        costs = self.estimates(texts)
        if not self._fits(len(texts), sum(costs), params.priority):
            raise self._full(params.priority)
        loop = asyncio.get_running_loop()
        now = loop.time()
        pending = [
            PendingText(text, first_index + i, params, now, cost, loop.create_future())
            for i, (text, cost) in enumerate(zip(texts, costs, strict=True))
        ]
        self._queues[params.priority].put(pending)
        return pending

    async def wait_for_space(self, texts: Sequence[Text], priority: Priority = "interactive") -> None:
        """Return once these texts fit."""
        tokens = sum(self.estimates(texts))
        while not self._fits(len(texts), tokens, priority):
            self._answered.clear()
            await self._answered.wait()

    def ready_in_s(self, chars: int, caller: str | None = None) -> float:
        """When an interactive text of this length would have its vector, in seconds from now; 0 if nothing waits."""
        return self._queues["interactive"].ready_in_s([min(chars + 2, self.encoder.max_tokens)], caller)

    def require_time(self, texts: Sequence[Text], params: EmbedParams) -> None:
        """Refuse texts that would be late, so that others are in time. Raises Busy."""
        ready_s = self._queues[params.priority].ready_in_s(self.estimates(texts), params.caller)
        left_s = params.deadline - asyncio.get_running_loop().time()
        queue = f"this worker's {params.priority} queue for model {self.encoder.model!r} takes"
        if late := past_deadline(queue, ready_s, left_s):
            raise late

    def _fits(self, texts: int, tokens: int, priority: Priority) -> bool:
        """Whether they fit. An empty queue takes anything, so that nothing is refused for ever."""
        queue, limits = self._queues[priority], self._limits
        if not queue.unfinished:
            return True
        return len(queue.unfinished) + texts <= limits.queue_texts and queue.tokens + tokens <= limits.queue_tokens

    def _full(self, priority: Priority) -> Busy:
        """With retry_after_ms after which about half of the queue is done."""
        queue = self._queues[priority]
        return Busy(
            f"this worker's {priority} queue for model {self.encoder.model!r} is full "
            f"({len(queue.unfinished)} texts, {queue.tokens} tokens); try again later",
            retry_after_ms=retry_after_ms(queue.ready_in_s([]) / 2),
        )

    async def run(self) -> None:
        """Tokenize and run batches for ever."""
        try:
            async with asyncio.TaskGroup() as group:
                for queue in self._queues.values():
                    group.create_task(queue.run())
        finally:
            self._stopped = True
            for queue in self._queues.values():
                for text in queue.unfinished:
                    text.future.cancel()
