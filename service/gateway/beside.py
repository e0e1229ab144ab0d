"""A gateway beside a worker: a child process, so that the two share no event loop."""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from pydantic import BaseModel, SecretStr, field_serializer

from subjects.client.attempts import Pauses
from subjects.errors import Unavailable

from ..bus.credentials import password
from ..bus.embedded import EmbeddedServer
from ..bus.errors import BadBusSettings
from ..bus.settings import NatsSettings
from ..runtime.child_process import start_child
from ..settings import Settings
from ..settings.gateway import HttpSettings
from .listening import listening, url_of

log = structlog.get_logger(__name__)

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0


class Given(BaseModel):
    """What the child must know. descriptor: of the listening socket. nats: with secrets in the clear as JSON."""

    descriptor: int
    nats: NatsSettings
    http: HttpSettings
    grace_s: float
    log_format: str
    log_level: str

    @field_serializer("nats", when_used="json")
    def _with_secrets(self, nats: NatsSettings) -> dict[str, object]:
        told = nats.model_dump(exclude_defaults=True)
        return {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in told.items()
        }


@asynccontextmanager
async def gateway_beside(
    settings: Settings, server: EmbeddedServer | None, nats: NatsSettings
) -> AsyncIterator["BesideWorker | None"]:
    """A gateway while the context is open, if the settings want one; leaving it waits for what it has to finish.

    server: that of this process, if it started one. nats: as whom the worker connects. Raises BadSettings, PortBusy.
    """
    who = (server.settings("gateway") if server else _identity(nats)) if settings.gateway else None
    if who is None:
        if settings.gateway:
            log.warning("gateway.left_out", reason="it connects as gateway: set MLBUS_GATEWAY_PASSWORD")
        yield None
        return
    gateway = BesideWorker(listening(settings.http), settings, who)
    running = asyncio.create_task(gateway.run(), name="gateway")
    try:
        yield gateway
    finally:
        gateway.stop()
        await running


def _identity(worker: NatsSettings) -> NatsSettings | None:
    """Who it is on a server of others: `gateway`, if its password is set, or nobody, if the worker is nobody too."""
    if worker.anonymous:
        return worker.model_copy(update={"inbox_prefix": NatsSettings.model_fields["inbox_prefix"].default})
    try:
        return NatsSettings.of_user(os.environ, "gateway", password("gateway", None, os.environ), worker.url)
    except BadBusSettings:
        return None


class BesideWorker:
    """The child and its successors: one that ends by itself is started again, on the same socket. url: of HTTP."""

    def __init__(self, listener: socket.socket, settings: Settings, nats: NatsSettings) -> None:
        self.url = url_of(listener)
        self._listener = listener
        self._given = Given(
            descriptor=listener.fileno(),
            nats=nats,
            http=settings.http,
            grace_s=settings.grace_s,
            log_format=settings.log_format,
            log_level=settings.log_level,
        )
        self._process: Process | None = None
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Have it take no more requests and finish those it has."""
        self._stopping.set()
        self._listener.close()
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.terminate()

    async def run(self) -> None:
        """Keep it running until `stop`, then wait for its end."""
        pauses = Pauses(FIRST_PAUSE_S, MAX_PAUSE_S)
        while not self._stopping.is_set():
            code = await self._run_once()
            if self._stopping.is_set():
                return
            pause_s = pauses.after(Unavailable("it has ended"))
            log.error("gateway.ended", code=code, again_in_s=round(pause_s, 1))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _run_once(self) -> int:
        """Its exit code. Of Ctrl-C in a terminal it hears from this process alone."""
        command = (sys.executable, "-P", "-m", "service.gateway")
        self._process = await start_child(*command, pass_fds=(self._given.descriptor,), stdin=PIPE, stderr=None)
        if self._stopping.is_set():
            self._process.terminate()
        await self._process.communicate(self._given.model_dump_json().encode())
        return await self._process.wait()
