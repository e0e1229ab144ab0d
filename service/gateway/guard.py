"""The check of each request before anything else: who calls, under which name, and how much is under way."""

import asyncio
import ipaddress
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from subjects import names
from subjects.errors import Busy, DeadlinePassed, Forbidden, Internal, Malformed, MLError, Unavailable

from ..settings.gateway import HttpSettings
from . import errors
from .telemetry import GatewayTelemetry

log = structlog.get_logger(__name__)

UNREAD_BYTES, UNREAD_S = 128 * 2**20, 5.0
"""How much of a refused body is read all the same, and how long: most clients read an answer only once all is sent."""
_CORS_MAX_AGE_S = "600"
_ALLOWED_HEADERS = ", ".join(
    ("Authorization", names.CONTENT_TYPE, names.ACCEPT, names.REQUEST_ID, names.TIMEOUT_MS, names.STREAM, names.PING_MS)
)


class Guard:
    """The outermost part of the application. It counts requests and answers what nothing inside has answered.

    A web page of anywhere can call a server on this machine, under any name that its owner points here. So the header
    Host must be an address or a known name, and Origin, which browsers send, our own or a named one.
    """

    def __init__(self, app: ASGIApp, settings: HttpSettings, telemetry: GatewayTelemetry) -> None:
        self._app = app
        self._settings = settings
        self._telemetry = telemetry
        self._in_flight = 0
        telemetry.in_flight(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(scope, receive, send)
        began = time.perf_counter()  # the loop's clock knows whole milliseconds only
        self._in_flight += 1
        try:
            await self._answer(scope, answer)
        finally:
            self._in_flight -= 1
            path = getattr(scope.get("route"), "path", "none")
            self._telemetry.ended(path, answer.status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, answer: "_Answer") -> None:
        headers = Headers(scope=scope)
        try:
            cross_origin = self._check(scope, headers)
            answer.headers = dict(_cors(headers)) if cross_origin else {}
            if cross_origin and scope["method"] == "OPTIONS":
                await Response(status_code=204)(scope, answer.receive, answer.send)
                return
            await self._app(scope, answer.receive, answer.send)
            return
        except MLError as error:
            refusal = error
        except asyncio.CancelledError:  # at the end of the grace time
            refusal = Unavailable("this gateway is shutting down")
        except Exception:
            log.exception("http.failed", path=scope["path"])
            refusal = Internal("internal error; the gateway's log tells more")
        if answer.status:
            scope["abort"]()
        else:
            await errors.response(refusal, scope["path"])(scope, answer.receive, answer.send)

    def _check(self, scope: Scope, headers: Headers) -> bool:
        """Whether a page of another, known origin calls. Raises what the request is refused for."""
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self._settings.header_bytes:
            raise errors.HeadersTooLarge(f"the request's headers take more than {self._settings.header_bytes} bytes")
        host, origin = headers.get("host", ""), headers.get("origin")
        if not (host or scope["http_version"] == "1.0"):
            raise Malformed("the header Host is missing")
        if host and not self._is_ours(host):
            raise Forbidden(f"Host {host[:100]!r} is not a name of this gateway; allow it with the setting http.hosts")
        if self._in_flight > self._settings.requests:
            raise Busy(f"this gateway has {self._settings.requests} requests under way", retry_after_ms=1000)
        if origin is None or origin == f"{scope['scheme']}://{host}":
            return False
        if origin not in self._settings.origins:
            raise Forbidden(f"pages of {origin[:100]!r} may not call here; allow them with the setting http.origins")
        return True

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name == "localhost" or name in self._settings.hosts:
            return True
        try:
            ipaddress.ip_address(name)  # nobody can point an address somewhere else
        except ValueError:
            return False
        return True


class _Answer:
    """What is sent to the caller: its status, and `headers` besides those of the response itself."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._unread = scope["method"] not in ("GET", "HEAD")
        self.status = 0
        self.headers: dict[str, str] = {}

    async def receive(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            more = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            more.append((b"x-content-type-options", b"nosniff"))
            if self._unread and self.status != DeadlinePassed.code:  # then nothing more comes
                await self._read_the_rest()
            if self._unread:
                more.append((b"connection", b"close"))
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)

    async def _read_the_rest(self) -> None:
        """Read the body of a refused request and forget it, unless its sender waits to be told to send it."""
        if Headers(scope=self._scope).get("expect"):
            return
        read = 0
        try:
            async with asyncio.timeout(UNREAD_S):
                while self._unread and read < UNREAD_BYTES:
                    read += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass


def _cors(headers: Headers) -> Iterator[tuple[str, str]]:
    """What a browser must be told so that the page may read the answer."""
    yield "Access-Control-Allow-Origin", headers["origin"]
    yield "Vary", "Origin"
    yield "Access-Control-Expose-Headers", f"{names.REQUEST_ID}, Retry-After"
    if "access-control-request-method" in headers:
        yield "Access-Control-Allow-Methods", "GET, POST"
        yield "Access-Control-Allow-Headers", _ALLOWED_HEADERS
        yield "Access-Control-Max-Age", _CORS_MAX_AGE_S
