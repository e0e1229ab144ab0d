"""The worker's HTTP port: /metrics for Prometheus; /healthz and /readyz for whoever supervises the process.

Owns the threads that answer. Knows the event loop, and what is asked of it, only as Health.
"""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from ..config import BadSettings

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = structlog.get_logger(__name__)

TURN_S = 5.0
"""How long the event loop may take to come round before it counts as stuck."""
UNSENT_S = 10
"""How long a connection may say nothing, in seconds."""


class Health:
    """What is asked of the worker from other threads. not_ready: why it takes no requests now; nothing where it does.

    Made in the event loop, which calls not_ready.
    """

    def __init__(self) -> None:
        self.not_ready: Callable[[], Iterable[str]] = lambda: ("starting",)
        self._loop = asyncio.get_running_loop()

    def faults(self, path: str) -> list[str]:
        """Why the answer at /healthz or /readyz is no: that the loop does not turn; at /readyz also what is not ready.

        Waits for the loop, TURN_S at most.
        """
        asked = asyncio.run_coroutine_threadsafe(self._look(), self._loop)
        try:
            faults = asked.result(TURN_S)
        except TimeoutError:
            asked.cancel()
            return [f"the event loop has not come round for {TURN_S:g} s"]
        return faults if path == "/readyz" else []

    async def _look(self) -> list[str]:
        return list(self.not_ready())


class _Handler(WSGIRequestHandler):
    timeout = UNSENT_S

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


def serve_http(host: str, port: int, registry: CollectorRegistry, health: Health) -> tuple[int, Callable[[], None]]:
    """Answer at host and port; at a free port where that one is taken, as by another worker of this machine.

    -> the port in use, and what closes it. Raises BadSettings where the host is not this machine's.
    """
    metrics = make_wsgi_app(registry)

    def app(environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in ("/healthz", "/readyz"):
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        faults = health.faults(path)
        status = "503 Service Unavailable" if faults else "200 OK"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return ["".join(f"{line}\n" for line in faults or ["ok"]).encode()]

    def listening(at: int) -> ThreadingWSGIServer:
        return make_server(host, at, app, _Server6 if ":" in host else ThreadingWSGIServer, _Handler)

    try:
        server = listening(port)
    except OSError as error:
        log.warning("metrics.port_taken", port=port, reason=str(error))
        try:
            server = listening(0)
        except OSError as nowhere:
            raise BadSettings(f"metrics_host {host!r} cannot be listened on: {nowhere.strerror}") from None
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, close
