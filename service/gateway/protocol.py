"""uvicorn's HTTP protocol with bounds: how many connections, and how large and how slow a request's headers may be."""

import asyncio
from typing import Any
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from subjects import codec, names
from subjects.errors import DeadlinePassed, Malformed, MLError

from ..settings.gateway import HttpSettings
from .errors import HeadersTooLarge


class BoundedProtocol(HttpToolsProtocol):
    """A connection. It is closed if headers are too large or too slow; the body is the application's business.

    The scope of a request holds `abort`, which closes the connection at once, whatever is still unsent.
    """

    settings: HttpSettings

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_bytes = 0
        self._in_head = False
        self._slow: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections:
            transport.abort()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        started_in_head = self._in_head
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes = self._head_bytes + len(data) if started_in_head else len(data)
        if self._head_bytes > self.settings.header_bytes:
            self._refuse(HeadersTooLarge(f"the request's headers take more than {self.settings.header_bytes} bytes"))
        elif self._slow is None:
            self._wait_for_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self.scope["abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_is_there()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Malformed("this is not HTTP as it is read here"))

    def _wait_for_head(self) -> None:
        self._slow = self.loop.call_later(self.settings.read_timeout_s, self._too_slow)

    def _head_is_there(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _too_slow(self) -> None:
        limit_s = self.settings.read_timeout_s
        self._refuse(DeadlinePassed(f"the request's headers did not arrive within {limit_s:g} s"))

    def _refuse(self, error: MLError) -> None:
        """Answer in the wire contract's form, unless an answer is under way, and close the connection."""
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            body = codec.dumps_error(error, uuid4().hex, names.JSON)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[error.code] + head + body)
        self.transport.close()


def protocol_of(settings: HttpSettings) -> type[BoundedProtocol]:
    """The protocol with these bounds."""
    return type("Protocol", (BoundedProtocol,), {"settings": settings})
