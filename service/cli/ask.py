"""How the commands reach workers: one connection a command, quiet, and clear about what the server refuses."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import nats.errors
import structlog
from nats.aio.client import Client

from subjects import codec, names
from subjects.client import EmbedCallOptions

from ..bus.causes import Denied
from ..bus.connection import connected
from ..bus.errors import BusError
from ..bus.settings import NatsSettings

STALL_S = 0.3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to connect, and how long each request may take, in seconds."""

    nats_url: str | None
    timeout_s: float

    def settings(self) -> NatsSettings:
        """The url over the environment of the nats command. Raises BadBusSettings."""
        return NatsSettings.from_env(os.environ, **({"url": self.nats_url} if self.nats_url else {}))


@dataclass(eq=False)
class MayNotAsk(BusError):
    """The server is there and does not let us do what the command needs."""

    identity: str
    denied: Denied

    def __str__(self) -> str:
        verb = "publish on" if self.denied.operation == "publish" else "subscribe to"
        other = (
            "set NATS_INBOX_PREFIX to that of the user"
            if self.denied.subject.startswith("_inbox")
            else "ask its operator"
        )
        return (
            f"the NATS server does not let {self.identity} {verb} {self.denied.subject}: "
            f"connect as another user (NATS_USER, NATS_CREDS or a context), or {other}"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker said, and after how many milliseconds."""

    body: dict[str, Any]
    ms: float


def encode_options(
    model: str | None, dimensions: int | None, prompt_name: str | None, prompt: str | None, truncate: str
) -> EmbedCallOptions:
    """The shared options of `embed` and `similarity`, as the client takes them."""
    return {
        "model": model,
        "dimensions": dimensions,
        "prompt_name": prompt_name,
        "prompt": prompt,
        "truncate": truncate,
    }


def ask(connection: Connection, question: Callable[[Client], Awaitable[T]]) -> T:
    """Connect, put the question, disconnect -> its answer. Raises BusError, MLError."""

    async def run() -> T:
        async with permitted(connection.settings()) as nc:
            return await question(nc)

    return asyncio.run(run())


@asynccontextmanager
async def permitted(settings: NatsSettings) -> AsyncIterator[Client]:
    """A connection that ends with MayNotAsk as soon as the server refuses something.

    A refused publish would otherwise look like a worker that does not answer.
    """
    silence_logs()
    task, refusals = asyncio.current_task(), list[Denied]()
    assert task is not None

    def on_denied(denied: Denied) -> None:
        if not refusals:
            task.cancel()
        refusals.append(denied)

    async with connected(settings, on_denied=on_denied) as nc:
        try:
            yield nc
        except asyncio.CancelledError:
            if not refusals:
                raise
            task.uncancel()
            raise MayNotAsk(settings.identity, refusals[0]) from None


def silence_logs() -> None:
    """What the connection logs is for workers; a command's own errors say it all."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


async def ask_all(nc: Client, verb: str, timeout_s: float) -> list[Answer]:
    """Every worker's answer to the micro protocol's PING, INFO or STATS; empty when there is no worker.

    The first may take the whole time, the others must follow within STALL_S of the one before.
    """
    inbox = nc.new_inbox()
    messages = await nc.subscribe(inbox)
    answers: list[Answer] = []
    started = time.perf_counter()
    await nc.publish(f"$SRV.{verb}.{names.SERVICE}", reply=inbox)
    while True:
        try:
            message = await messages.next_msg(timeout=STALL_S if answers else timeout_s)
        except nats.errors.TimeoutError:
            return answers
        if (message.headers or {}).get("Status") == "503":
            return answers
        answers.append(Answer(codec.loads(message.data, names.JSON), (time.perf_counter() - started) * 1000))
