"""One forward pass, on the device's thread: a batch of works in, finished vectors out. Knows no queue."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from traceback import clear_frames

import numpy as np

from models.encoders.base import Encoder, Vectors, batch_tokens, finish
from models.errors import OutOfDeviceMemory

from .work import PendingText


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a pass gave. vectors: None where the model gave NaN or infinity; absent: nobody wanted it any more.

    tokens, computed: of the texts, and with the padding that the model computed too. seconds: on the device;
    held_s: the longest stretch of them between two stops, None where the pass gave way to nobody.
    """

    vectors: dict[PendingText, Vectors | None] = field(default_factory=dict)
    tokens: int = 0
    computed: int = 0
    seconds: float = 0.0
    held_s: float | None = None


class _Unwanted(Exception):
    """Nobody waits for any text of the batch any more."""


class _Stops:
    """The stops of a pass that gives way to others. away_s: how long they took; held_s: the longest way between two."""

    def __init__(self, wanted: Sequence[PendingText], give_way: Callable[[], None]) -> None:
        self._wanted = wanted
        self._give_way = give_way
        self._resumed = time.perf_counter()
        self.away_s = 0.0
        self.held_s = 0.0

    def __call__(self) -> None:
        left = self.reached()
        self._give_way()
        self._resumed = time.perf_counter()
        self.away_s += self._resumed - left
        if not any(work.wanted() for work in self._wanted):
            raise _Unwanted

    def reached(self) -> float:
        """A stretch ends now (in seconds of the performance counter)."""
        now = time.perf_counter()
        self.held_s = max(self.held_s, now - self._resumed)
        return now


def forward(encoder: Encoder, batch: Sequence[PendingText], give_way: Callable[[], None] | None = None) -> BatchResult:
    """Run what is still wanted of a batch. Raises whatever the encoder raises.

    give_way: called between the layers; given, the pass also ends there once nobody waits for it.
    """
    started = time.perf_counter()
    wanted = [work for work in batch if work.wanted()]
    if not wanted:
        return BatchResult()
    stops = _Stops(wanted, give_way) if give_way else None
    try:
        pooled = encoder.encode([work.tokens for work in wanted], stops)
    except _Unwanted:
        return BatchResult()
    except OutOfDeviceMemory as error:
        _let_go(error)
        raise
    finite = np.isfinite(np.abs(pooled).max(axis=1))  # NaN and infinity both survive the maximum
    finished = _finish(wanted, np.where(finite[:, None], pooled, np.float32(0)))
    rows = zip(wanted, finished, finite, strict=True)
    vectors = {work: vector if good else None for work, vector, good in rows}
    lengths = [work.cost for work in wanted]
    tokens, computed = sum(lengths), batch_tokens(encoder, lengths)
    if stops is None:
        return BatchResult(vectors, tokens, computed, time.perf_counter() - started)
    return BatchResult(vectors, tokens, computed, stops.reached() - started - stops.away_s, stops.held_s)


def _let_go(error: BaseException | None) -> None:
    """The frames of a failed pass hold its tensors, and with them the memory that the next try needs."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__


def _finish(works: Sequence[PendingText], pooled: Vectors) -> list[Vectors]:
    """Each row of pooled (B, D) finished as its work asks."""
    finished: list[Vectors] = []
    for how, rows in groupby(range(len(works)), key=lambda i: works[i].finish):
        run = list(rows)
        finished += list(finish(pooled[run[0] : run[-1] + 1], how.normalize, how.dimensions))
    return finished
