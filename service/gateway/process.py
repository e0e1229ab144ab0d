"""The gateway's process: it listens, keeps its connection to NATS, and stops in good order."""

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Iterator

import structlog
import uvicorn
import uvloop

from ..bus.settings import NatsSettings
from ..runtime.background import background_task
from ..runtime.stop import Stop, end_on_signals, end_soon
from ..settings.gateway import HttpSettings
from .app import application
from .bus import Bus
from .listening import url_of
from .protocol import protocol_of

log = structlog.get_logger(__name__)

LEAVING_S = 2.0
"""The part of the grace time that is kept for the last answers and for closing connections."""
KEEP_ALIVE_S = 75


def run(listener: socket.socket, nats: NatsSettings, settings: HttpSettings, grace_s: float) -> int:
    """Run the gateway on a listening socket until a signal -> exit code."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(listener, nats, settings, grace_s))


async def _serve(listener: socket.socket, nats: NatsSettings, settings: HttpSettings, grace_s: float) -> int:
    stop = Stop(max(grace_s, LEAVING_S) + 1, name="gateway")
    end_on_signals(stop)
    bus = Bus(nats, settings.default_timeout_s)
    try:
        async with background_task(functools.partial(bus.run, stop), "bus"):
            log.info("gateway.listening", url=url_of(listener), nats=nats.url)
            await _Server(_config(bus, settings, max(0.0, grace_s - LEAVING_S)), stop).serve(sockets=[listener])
        log.info("gateway.stopped", code=stop.code)
    finally:
        end_soon(stop.code)
    return stop.code


def _config(bus: Bus, settings: HttpSettings, finish_s: float) -> uvicorn.Config:
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # what it reports is answered or logged by ours
    logging.getLogger("uvicorn").propagate = False
    return uvicorn.Config(
        application(bus, settings),
        http=protocol_of(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=finish_s,  # type: ignore[arg-type]
    )


class _Server(uvicorn.Server):
    """uvicorn's server, which ends when `stop` says so instead of on signals, and waits for what it then cancels."""

    def __init__(self, config: uvicorn.Config, stop: Stop) -> None:
        super().__init__(config)
        self._stop = stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def main_loop(self) -> None:
        ticking = asyncio.create_task(super().main_loop())
        await self._stop.requested.wait()
        self.should_exit = True
        await ticking

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=LEAVING_S)
