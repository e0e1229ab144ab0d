"""One text on its way through a batcher, and what bounds the way. Knows encoders' types, nothing of queues."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Literal

from models.encoders.base import TextOptions, Tokens, Vectors

Priority = Literal["interactive", "bulk"]
"""Whether a person waits for a text, or it is one of many that nobody waits for singly."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """budget_tokens: what a batch computes at most. overhead_tokens: how much padding a text may add to one.

    queue_texts, queue_tokens: what may wait or run at once, of each priority.
    """

    budget_tokens: int = 1024
    overhead_tokens: int = 32
    queue_texts: int = 8192
    queue_tokens: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Finish:
    """What is done to a pooled vector: normalise it, cut it to so many dimensions."""

    normalize: bool = True
    dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class Embedded:
    """One text's answer. vector (D,) float32; tokens: how many the model read."""

    vector: Vectors
    tokens: int
    truncated: bool


class NonFinite(Exception):
    """The model gave a vector with NaN or infinity."""


@dataclass(slots=True, eq=False)
class PendingText:
    """One text on its way through the batcher.

    deadline, arrived: loop time (monotonic) in seconds. source: whose it is; turn: when it goes (models/fair_order.py).
    """

    text: str
    index: int
    options: TextOptions
    finish: Finish
    deadline: float
    arrived: float
    cost: int
    future: asyncio.Future[Embedded]
    source: str = ""
    turn: float = 0.0
    tokens: Tokens = field(default_factory=lambda: Tokens([]))

    def wanted(self) -> bool:
        """Whether its caller still waits and its deadline is still to come. Callable from any thread."""
        return not self.future.done() and time.monotonic() < self.deadline
