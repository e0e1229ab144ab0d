"""Who serves: the micro protocol's questions, put to every worker, and the inbox that many answers come to."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import nats.errors
from nats.aio.client import Client

from . import codec, names


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker said, and after how many milliseconds."""

    body: dict[str, Any]
    ms: float


@asynccontextmanager
async def inbox(nc: Client, below: str = "") -> AsyncIterator[tuple[str, Any]]:
    """A subject of one's own and the subscription to it, for as long as the context lasts.

    below: what it begins with, instead of the connection's own prefix.
    """
    subject = f"{below}.{uuid4().hex}" if below else nc.new_inbox()
    messages = await nc.subscribe(subject)
    try:
        yield subject, messages
    finally:
        if not nc.is_closed:
            await messages.unsubscribe()


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
            if (message.headers or {}).get("Status") == "503":
                break
            ms = (time.perf_counter() - started) * 1000
            answers.append(Answer(codec.loads(message.data, names.JSON), ms))
    return answers
