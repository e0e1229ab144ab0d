"""One forward pass, on the device's thread: a batch of works in, finished vectors out. Knows no queue."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from models.encoders.base import Encoder, Vectors, batch_tokens, finish

from .work import Work


@dataclass(frozen=True, slots=True)
class Ran:
    """What a pass gave. vectors: None where the model gave NaN or infinity; absent: nobody wanted it any more.

    tokens, computed: of the texts, and with the padding that the model computed too. seconds: on the device.
    """

    vectors: dict[Work, Vectors | None]
    tokens: int
    computed: int
    seconds: float


def forward(encoder: Encoder, batch: Sequence[Work]) -> Ran:
    """Run what is still wanted of a batch. Raises whatever the encoder raises."""
    started = time.perf_counter()
    wanted = [work for work in batch if work.wanted()]
    vectors: dict[Work, Vectors | None] = {}
    if wanted:
        pooled = encoder.encode([work.tokens for work in wanted])
        finite = np.isfinite(np.abs(pooled).max(axis=1))  # NaN and infinity both survive the maximum
        finished = _finish(wanted, np.where(finite[:, None], pooled, np.float32(0)))
        rows = zip(wanted, finished, finite, strict=True)
        vectors = {work: vector if good else None for work, vector, good in rows}
    seconds = time.perf_counter() - started
    lengths = [work.cost for work in wanted]
    return Ran(vectors, sum(lengths), batch_tokens(encoder, lengths), seconds)


def _finish(works: Sequence[Work], pooled: Vectors) -> list[Vectors]:
    """Each row of pooled (B, D) finished as its work asks."""
    finished: list[Vectors] = []
    for how, rows in groupby(range(len(works)), key=lambda i: works[i].finish):
        run = list(rows)
        finished += list(finish(pooled[run[0] : run[-1] + 1], how.normalize, how.dimensions))
    return finished
