"""A text in a batcher, with its options and its result."""

import asyncio
import time
from dataclasses import dataclass, field

from models.encoders.base import Text, TextOptions, Tokens, Vectors
from subjects.names import Priority


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """budget_tokens: what a batch computes at most. overhead_tokens: how much padding a text may add to one.

    queue_texts, queue_tokens: what may wait or run at once, for each priority.
    """

    budget_tokens: int = 1024
    overhead_tokens: int = 32
    queue_texts: int = 8192
    queue_tokens: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Finish:
    """What is done to a pooled vector: scaled to unit length, cut to its first `dimensions`."""

    normalize: bool = True
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class EmbedParams:
    """How the texts of a request are embedded.

    deadline: loop time, seconds. caller: who takes turns with others; each gets an equal share.
    """

    options: TextOptions
    finish: Finish
    deadline: float
    priority: Priority = "interactive"
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The result for one text. vector (D,) float32; tokens: how many the model read."""

    vector: Vectors
    tokens: int
    truncated: bool


@dataclass(slots=True, eq=False)
class PendingText:
    """One text of a request. index: within the request. arrived: loop time, seconds.

    cost: its tokens; before it is tokenized, an estimate. start_tag: its place in the order (models/fair_order.py).
    """

    text: Text
    index: int
    params: EmbedParams
    arrived: float
    cost: int
    future: asyncio.Future[Embedded]
    start_tag: float = 0.0
    tokens: Tokens = field(default_factory=lambda: Tokens([]))

    def wanted(self) -> bool:
        """Whether its caller still waits and its deadline has not passed. Callable from any thread."""
        return not self.future.done() and time.monotonic() < self.params.deadline
