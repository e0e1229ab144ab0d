"""The canary check after a swap: texts embedded over the bus, as a client would, must give the candidate's vectors."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np
from nats.aio.client import Client

from models.encoders.base import Vectors, cosine_rows
from subjects import routes
from subjects.client.transport import Transport
from subjects.embed import EmbedBatchReply
from subjects.errors import DeadlinePassed, MLError

from ...bus.credentials import WORKERS_INBOX

ROUND_S = 120.0
"""The time for all replies; it includes a server that is away for a moment."""
REPLY_S = 30.0
RETRY_S = 0.5
MIN_COSINE = 0.999


class Mismatch(Exception):
    """The replies are not what the candidate gave; the text is a clause."""


@dataclass(frozen=True, slots=True)
class CanaryCheck:
    """texts (N) and their vectors (N, D) float32. weights: the prefix that `version` in the replies must have.

    min_cosine: between each reply's row and the expected row.
    """

    model: str
    weights: str
    texts: list[str]
    expected: Vectors
    min_cosine: float = MIN_COSINE

    async def run(self, nc: Client, replies: int) -> None:
        """Ask until `replies` replies match. A reply in another version is ignored: that worker may still swap.

        Raises Mismatch for a reply that differs, and if not enough replies come in time.
        """
        matched = 0
        last: str | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(ROUND_S) as timer:
                while matched < replies and not timer.expired():  # nats-py swallows a cancellation at times
                    last = await self._ask_once(nc)
                    if last is None:
                        matched += 1
                    else:
                        await asyncio.sleep(RETRY_S)
        if matched < replies:
            raise Mismatch(f"{matched} of {replies} answers came within {ROUND_S:.0f} s; {last}")

    async def _ask_once(self, nc: Client) -> str | None:
        """None for a reply that matches, else why it does not count."""
        try:
            reply = await self._ask(nc)
        except DeadlinePassed as error:  # the server may have been away
            return str(error)
        except MLError as error:
            if error.retryable:
                return str(error)
            raise Mismatch(str(error)) from error
        if reply.version.startswith(self.weights):
            self._compare(reply)
            return None
        return f"version {reply.version} answered, not {self.weights}"

    async def _ask(self, nc: Client) -> EmbedBatchReply:
        transport = Transport(nc, REPLY_S, retries=0, below=WORKERS_INBOX)
        try:
            return await transport.ask(routes.EMBED_BATCH, {"model": self.model, "texts": self.texts}, None)
        finally:
            await transport.close()

    def _compare(self, reply: EmbedBatchReply) -> None:
        found = np.stack([cast(Vectors, vector) for vector in reply.embeddings])
        if found.shape != self.expected.shape:
            raise Mismatch(f"vectors of shape {found.shape} came back, not {self.expected.shape}")
        worst = float(np.min(cosine_rows(found, self.expected)))
        if not worst >= self.min_cosine:  # also for NaN
            raise Mismatch(f"vectors came back with a cosine of {worst:.4f} to the candidate's own")
