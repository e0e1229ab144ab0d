"""Connections of commands to workers, with clear messages for what the NATS server refuses."""

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
from subjects.client import MLClient
from subjects.routes import ROUTES

from ..bus.announcement import announced_url
from ..bus.causes import Denied
from ..bus.connection import connected
from ..bus.credentials import FILE_NAME, password
from ..bus.errors import BadBusSettings, BusError
from ..bus.settings import NatsSettings
from ..settings import BadSettings, read_settings

STALL_S = 0.3
NO_WORKER = "no worker answers on this NATS server; start one with `mlbus serve`"
_CHANGES = tuple(
    route.subject for route in ROUTES.values() if route.role == "admin" and route.subject != names.JOBS_LIST
)
_STORAGE = ("$js.api.stream.", "$js.api.consumer.")
_ADMINISTRATORS = (
    (_CHANGES, "change what workers serve"),
    ((names.JOBS_LIST,), "list everybody's jobs"),
    (_STORAGE, "set up fine-tuning"),
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Connection:
    """The server to connect to, and the time that each request may take, in seconds."""

    nats_url: str | None
    timeout_s: float

    def settings(self) -> NatsSettings:
        """The settings of the nats command's environment, with this url if it is given. Raises BadBusSettings.

        Without an identity, and with an embedded server on this machine, the identity is its administrator.
        """
        found = NatsSettings.from_env(os.environ, **({"url": self.nats_url} if self.nats_url else {}))
        return (_administrator_of(found.url) if found.anonymous else None) or found


def _administrator_of(url: str) -> NatsSettings | None:
    """The administrator of the embedded server at this url, if its passwords are in the data directory; else None."""
    with suppress(BadSettings, BadBusSettings):
        data_dir = read_settings().data_dir
        if announced_url(data_dir) == url:
            return NatsSettings.of_user(os.environ, "admin", password("admin", data_dir / FILE_NAME, {}), url)
    return None


@dataclass(eq=False)
class MayNotAsk(BusError):
    """The NATS server does not permit what the command needs."""

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
    """Connect, await `question`, disconnect -> its result. Raises BusError, MLError."""

    async def run() -> T:
        async with permitted(connection.settings()) as nc:
            return await question(nc)

    return asyncio.run(run())


def ask_worker(connection: Connection, question: Callable[[MLClient], Awaitable[T]]) -> T:
    """The same with the typed client."""
    return ask(connection, lambda nc: question(MLClient(nc, timeout_s=connection.timeout_s)))


@asynccontextmanager
async def permitted(settings: NatsSettings) -> AsyncIterator[Client]:
    """A connection that raises MayNotAsk as soon as the server refuses something.

    Otherwise a refused publish would look like a worker that does not answer.
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
    """Turn off the connection's log, which is for workers: commands report errors themselves."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
