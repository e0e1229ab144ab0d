"""The worker's HTTP port: /metrics for Prometheus, /healthz and /readyz for the supervisor of the process."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, make_server

import structlog
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = structlog.get_logger(__name__)

LOOP_TIMEOUT_S = 5.0
"""How long the event loop may take to run a callback before it counts as stuck."""
UNSENT_S = 10
"""How long a connection may be silent, in seconds."""


class Health:
    """The worker's health, for other threads. Made in the event loop, which calls not_ready.

    not_ready: why the worker takes no requests now; empty if it does.
    """

    def __init__(self) -> None:
        self.not_ready: Callable[[], Iterable[str]] = lambda: ("starting",)
        self._loop = asyncio.get_running_loop()

    def faults(self, path: str) -> list[str]:
        """Why the answer at /healthz or /readyz is no: the loop is stuck; at /readyz also what is not ready.

        Waits for the loop, LOOP_TIMEOUT_S at most.
        """
        check = asyncio.run_coroutine_threadsafe(self._check(), self._loop)
        try:
            faults = check.result(LOOP_TIMEOUT_S)
        except TimeoutError:
            check.cancel()
            return [f"the event loop has not responded for {LOOP_TIMEOUT_S:g} s"]
        return faults if path == "/readyz" else []

    async def _check(self) -> list[str]:
        return list(self.not_ready())


class _Handler(WSGIRequestHandler):
    timeout = UNSENT_S

    def log_message(self, *_: object) -> None:
        """Requests are not logged."""


class _Server6(ThreadingWSGIServer):
    address_family = socket.AF_INET6


def serve_http(host: str, port: int, registry: CollectorRegistry, health: Health) -> tuple[int, Callable[[], None]]:
    """Serve at host and port; at a free port if that one is taken, as by another worker on this machine.

    -> the port in use, and a function that closes it. Raises OSError if the host is not this machine's.
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
        server = listening(0)
    thread = threading.Thread(target=server.serve_forever, name="http", daemon=True)
    thread.start()

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return server.server_port, close
