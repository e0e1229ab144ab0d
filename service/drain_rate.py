"""How fast a queue of texts empties, with all that this takes: by the clock on the wall, not on the device alone.

Learns from batches that ended. Knows no queue.
"""

import asyncio
from collections.abc import Sequence

from .work import Work

_WEIGHT = 0.3  # of the latest full batch in the average


class DrainRate:
    """token_s: seconds that a token in the queue takes, from one batch's end to the next."""

    def __init__(self) -> None:
        self.token_s = 0.0
        self._ended = 0.0

    def ended(self, batch: Sequence[Work], budget_tokens: int) -> None:
        """A batch has been answered. budget_tokens: of a full one; a smaller one tells less."""
        now = asyncio.get_running_loop().time()
        tokens = sum(work.cost for work in batch)
        seconds = now - max(self._ended, batch[0].arrived)
        self._ended = now
        weight = _WEIGHT * min(1.0, tokens / budget_tokens) if self.token_s else 1.0
        self.token_s += weight * (seconds / tokens - self.token_s)
