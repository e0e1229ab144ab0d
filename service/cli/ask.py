"""How the commands reach workers: one connection a command, quiet, and clear about what the server refuses."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import structlog
from nats.aio.client import Client

from subjects import names

from ..bus.announcement import announced_url
from ..bus.causes import Denied
from ..bus.connection import connected
from ..bus.credentials import FILE_NAME, password
from ..bus.errors import BadBusSettings, BusError
from ..bus.settings import NatsSettings
from ..config import BadSettings, read_settings

STALL_S = 0.3
_CHANGES = (names.MODELS_LOAD, names.MODELS_UNLOAD, names.MODELS_RELOAD, names.MODELS_PROMOTE)
_EVERY_JOB = (names.JOBS_LIST,)
_STORAGE = ("$js.api.stream.", "$js.api.consumer.")
_ADMINISTRATORS = (
    (_CHANGES, "change what workers serve"),
    (_EVERY_JOB, "list everybody's jobs"),
    (_STORAGE, "set up fine-tuning"),
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to connect, and how long each request may take, in seconds."""

    nats_url: str | None
    timeout_s: float

    def settings(self) -> NatsSettings:
        """The url over the environment of the nats command. Raises BadBusSettings.

        Beside an embedded server of ours, who names no identity is its administrator.
        """
        found = NatsSettings.from_env(os.environ, **({"url": self.nats_url} if self.nats_url else {}))
        return (_administrator_of(found.url) if found.anonymous else None) or found


def _administrator_of(url: str) -> NatsSettings | None:
    """The administrator of the embedded server there, whose passwords are in our data directory; None where none is."""
    with suppress(BadSettings, BadBusSettings):
        data_dir = read_settings().data_dir
        if announced_url(data_dir) == url:
            return NatsSettings.of_user(os.environ, "admin", password("admin", data_dir / FILE_NAME, {}), url)
    return None


@dataclass(eq=False)
class MayNotAsk(BusError):
    """The server is there and does not let us do what the command needs."""

    identity: str
    denied: Denied

    def __str__(self) -> str:
        for subjects, what in _ADMINISTRATORS:
            if self.denied.subject.startswith(subjects):
                return (
                    f"the NATS server does not let {self.identity} {what}, which needs the "
                    "role admin: set NATS_USER=admin and NATS_PASSWORD; beside an embedded server the password is "
                    "MLBUS_ADMIN_PASSWORD in var/nats-credentials.env"
                )
        verb = "publish on" if self.denied.operation == "publish" else "subscribe to"
        other = (
            "set NATS_INBOX_PREFIX to that of the user (mlbus admin context writes it down)"
            if self.denied.subject.startswith("_inbox")
            else "ask its operator"
        )
        return (
            f"the NATS server does not let {self.identity} {verb} {self.denied.subject}: "
            f"connect as another user (NATS_USER, NATS_CREDS or a context), or {other}"
        )


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
