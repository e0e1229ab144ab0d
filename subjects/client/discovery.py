"""Who serves: the micro protocol's questions, put to every worker."""

import time
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client

from .. import codec, names
from .inbox import inbox, nobody_listens


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker said, and after how many milliseconds."""

    body: dict[str, Any]
    ms: float


async def ask_workers(
    nc: Client, verb: str, wait_s: float, stall_s: float | None = None, below: str = ""
) -> list[Answer]:
    """Every worker's answer to PING, INFO or STATS; empty when there is no worker.

    wait_s: for the first answer, and for all of them. stall_s: how long after one answer the next may take. below: see
    `inbox`.
    """
    answers: list[Answer] = []
    started = time.perf_counter()
    async with inbox(nc, below) as (reply, messages):
        await nc.publish(f"$SRV.{verb}.{names.SERVICE}", reply=reply)
        while (left := started + wait_s - time.perf_counter()) > 0:
            patience_s = left if stall_s is None or not answers else min(left, stall_s)
            try:
                message = await messages.next_msg(timeout=patience_s)
            except nats.errors.TimeoutError:
                break
            if nobody_listens(message):
                break
            ms = (time.perf_counter() - started) * 1000
            answers.append(Answer(codec.loads(message.data, names.JSON), ms))
    return answers
