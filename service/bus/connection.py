"""The connection to NATS: the first connect fails fast; after it every loss is followed by reconnects without end."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import structlog
from nats.aio.client import Client, Server
from nats.errors import SlowConsumerError

from .causes import Denied, cause, denied, reason
from .client import BusClient
from .client_options import client_options
from .errors import BadCredentials, BusClosed, BusError, TlsFailed, Unreachable, UnreadableMessage
from .log import RareLog
from .settings import NatsSettings

log = structlog.get_logger(__name__)

CLOSE_TIMEOUT_S = 5.0
ABANDON_TIMEOUT_S = 0.2
PING_INTERVAL_S = 20


@asynccontextmanager
async def connected(
    settings: NatsSettings,
    *,
    on_closed: Callable[[BusClosed], None] | None = None,
    on_denied: Callable[[Denied], None] | None = None,
) -> AsyncIterator[BusClient]:
    """A connected client that reconnects for as long as the context is open.

    The first connect tries each server once and raises Unreachable, BadCredentials, TlsFailed or BadBusSettings within
    a few seconds. After that it reconnects without end, even if credentials are refused meanwhile.

    `on_closed` is called in the event loop if the server closes the connection for good; the process should then exit
    non-zero. `on_denied` is called for every refused permission, at the latest before a following `settled()` returns.

    While disconnected up to `settings.pending_bytes` are buffered and sent after the reconnect; beyond that `publish`
    raises OutboundBufferLimitError.
    """
    options = await asyncio.to_thread(client_options, settings)
    link = _Link(settings, on_closed, on_denied)
    try:
        await link.open(options)
        yield link.client
    finally:
        await link.close()


async def settled(client: Client, timeout_s: float = 10) -> None:
    """Wait until the server has processed, or refused, everything published and subscribed before.

    It takes two flushes: nats-py sends the PING of the first one ahead of its queue.
    """
    async with asyncio.timeout(timeout_s):
        await client.flush()
        await client.flush()


class _Link:
    """One client from its first connect to its end."""

    def __init__(
        self,
        settings: NatsSettings,
        on_closed: Callable[[BusClosed], None] | None,
        on_denied: Callable[[Denied], None] | None,
    ) -> None:
        self.client = BusClient(wants_tls=settings.wants_tls, jetstream_domain=settings.jetstream_domain)
        self._settings = settings
        self._on_closed = on_closed
        self._on_denied = on_denied
        self._failures: list[BusError] = []
        self._hung_up = asyncio.Event()
        self._connecting = self._opened = self._closing = self._expelled = False
        self._rare = RareLog()
        self._passed: set[str] = set()
        self._move: asyncio.Task[None] | None = None

    async def open(self, options: dict[str, Any]) -> None:
        self._connecting = True
        await self.client.connect(
            **options,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
            closed_cb=self._on_close,
            lame_duck_mode_cb=self._on_lame_duck,
            max_reconnect_attempts=-1,
            reconnect_to_server_handler=self._next_server,
            ping_interval=PING_INTERVAL_S,
        )
        self._connecting = False
        if not self.client.is_connected:
            await self._raise_hang_up()
        self._opened = True
        log.info("bus.connected", url=self._url, context=self._settings.context, identity=self._settings.identity)

    async def close(self) -> None:
        """Send what is pending and disconnect, within `CLOSE_TIMEOUT_S`.

        It runs in a task of its own: asyncio never reports the end of a connection whose TLS handshake failed, and it
        cancels the caller if the reconnect of a lost connection is interrupted.
        """
        self._closing, self._connecting = True, False
        if self._move is not None:
            self._move.cancel()
        closing = asyncio.create_task(self.client.close(), name="bus.close")
        try:
            await asyncio.wait({closing}, timeout=CLOSE_TIMEOUT_S if self._opened else ABANDON_TIMEOUT_S)
        finally:
            closing.cancel()
        self._rare.flush()
        if self._opened and not self._expelled:
            log.info("bus.closed", url=self._settings.url, asked=True)

    async def _raise_hang_up(self) -> None:
        """nats-py returns from connect if the server hangs up silently; the error callback comes later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._hung_up.wait()
        raise self._failures[-1] if self._failures else Unreachable(self._settings.url, "no answer to CONNECT")

    def _refuse(self, error: Exception) -> None:
        """Record a failed first connect, and give up once every server has failed.

        A failed TLS handshake ends it at once: nats-py would wait for ever for the end of that connection.
        """
        failure = cause(self._settings, error)
        self._failures.append(failure)
        self._hung_up.set()
        if self._connecting and (isinstance(failure, TlsFailed) or len(self._failures) >= len(self._settings.servers)):
            raise next((f for f in self._failures if not isinstance(f, Unreachable)), failure) from error

    def _next_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The server that failed least, and the delay: short at first, then about `reconnect_wait_s`.

        A server in lame duck mode comes after all others. The random spread keeps a fleet from reconnecting to a
        restarted server all at once.
        """
        untried = [server for server in servers if self._passed and server.uri.netloc not in self._passed]
        server = min(untried or servers, key=lambda s: (s.reconnects, random.random()))
        if untried:
            self._passed.add(server.uri.netloc)
        soon = 0.0 if untried else random.uniform(0.0, 0.2)
        spread = random.uniform(0.5, 1.5) if server.reconnects else soon
        return server, self._settings.reconnect_wait_s * spread

    @property
    def _url(self) -> str:
        at = self.client.connected_url
        return at.geturl() if at is not None else self._settings.url

    async def _on_error(self, error: Exception) -> None:
        if self._closing:
            return
        if not self._opened:
            self._refuse(error)
        elif isinstance(error, SlowConsumerError):
            self._rare.warn("bus.slow_consumer", subject=error.sub.subject)
        elif isinstance(error, UnreadableMessage):
            self._rare.warn("bus.message_unreadable", subject=error.subject[:200], reason=str(error.cause))
        elif (refusal := denied(error)) is not None:
            self._rare.warn("bus.permission_denied", operation=refusal.operation, subject=refusal.subject)
            if self._on_denied is not None:
                self._on_denied(refusal)
        else:
            self._log_loss(error)

    def _log_loss(self, error: Exception) -> None:
        refused = isinstance(cause(self._settings, error), BadCredentials)
        event = "bus.credentials_refused" if refused else "bus.failed"
        self._rare.warn(event, url=self._settings.url, reason=reason(self._settings, error))

    async def _on_disconnected(self) -> None:
        if self._opened and not self._closing:
            log.warning("bus.disconnected", url=self._settings.url)

    async def _on_reconnected(self) -> None:
        self._passed.clear()
        log.info("bus.reconnected", url=self._url)

    async def _on_lame_duck(self) -> None:
        """The server is about to close: move to another one, if there is one, before it does."""
        log.warning("bus.lame_duck", url=self._url)
        at = self.client.connected_url
        if at is not None and not self._passed and any(s.uri.netloc != at.netloc for s in self.client.server_pool):
            self._passed.add(at.netloc)
            self._move = asyncio.create_task(self.client.leave(), name="bus.leave")

    async def _on_close(self) -> None:
        if self._closing or not self._opened:
            return
        self._expelled = True
        closed = BusClosed(self._settings.url, reason(self._settings, self.client.last_error or Exception("unknown")))
        log.error("bus.closed", url=closed.url, reason=closed.reason, asked=False)
        if self._on_closed is not None:
            self._on_closed(closed)
