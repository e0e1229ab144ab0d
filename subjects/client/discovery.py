"""PING, INFO and STATS of the NATS micro protocol, asked of every worker."""

import time
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.aio.client import Client

from .. import codec, names
from .inbox import inbox, nobody_listens


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one worker, and its time in milliseconds."""

    body: dict[str, Any]
    ms: float


async def ask_workers(
    nc: Client, verb: str, wait_s: float, stall_s: float | None = None, below: str = ""
) -> list[Answer]:
    """The answers of all workers to PING, INFO or STATS; empty if there is no worker.

    wait_s: for all answers. stall_s: longest time from one answer to the next. below: see `inbox`.
    """
    answers: list[Answer] = []
    started = time.perf_counter()
    async with inbox(nc, below) as (reply, messages):
        await nc.publish(f"$SRV.{verb}.{names.SERVICE}", reply=reply)
        while (left := started + wait_s - time.perf_counter()) > 0:
            timeout_s = left if stall_s is None or not answers else min(left, stall_s)
            try:
                message = await messages.next_msg(timeout=timeout_s)
            except nats.errors.TimeoutError:
                break
            if nobody_listens(message):
                break
            ms = (time.perf_counter() - started) * 1000
            answers.append(Answer(codec.loads(message.data, names.JSON), ms))
    return answers
