"""Inboxes: reply subjects that nobody can guess, and the request that a message on them answers.

A message answers the request whose id it carries: only the caller and the worker know the id.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import DEFAULT_SUB_PENDING_BYTES_LIMIT, Subscription

from .. import names
from ..errors import Cancelled

CLOSED = "this client was closed"
PENDING_BYTES: int = DEFAULT_SUB_PENDING_BYTES_LIMIT


def own_subject(nc: Client, below: str = "") -> str:
    """A subject that nobody can guess. below: its prefix, instead of the connection's own inbox prefix.

    nats-py's own inboxes count upwards: one of them tells all others of the same connection.
    """
    return f"{below or nc.new_inbox().rpartition('.')[0]}.{secrets.token_hex(16)}"


@asynccontextmanager
async def inbox(nc: Client, below: str = "", pending_bytes: int = PENDING_BYTES) -> AsyncIterator[tuple[str, Any]]:
    """A new subject and the subscription to it, until the context ends. below: see `own_subject`.

    pending_bytes: of messages that may wait; nats-py drops what comes above that.
    """
    subject = own_subject(nc, below)
    messages = await nc.subscribe(subject, pending_bytes_limit=pending_bytes)
    try:
        yield subject, messages
    finally:
        if not nc.is_closed:
            await messages.unsubscribe()


def nobody_listens(message: Msg) -> bool:
    """Whether this is the server's message that nobody listens on the requested subject."""
    return (message.headers or {}).get("Status") == "503"


def carries(message: Msg, request_id: str) -> bool:
    """Whether the message carries the id of the request, as every answer of a worker does."""
    return (message.headers or {}).get(names.REQUEST_ID) == request_id


class Inbox:
    """A client's inbox for single replies: one subscription from `open` to `close`. below: see `own_subject`."""

    def __init__(self, nc: Client, below: str = "") -> None:
        self._nc = nc
        self._below = below
        self._subject = ""
        self._subscription: Subscription | None = None
        self._open = False
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}

    async def open(self) -> str:
        """Subscribe, unless it is done -> the subject on which workers check that the client still listens.

        Raises the errors of `subscribe`.
        """
        if not self._open:
            self._open = True  # requests published from here on go out after the subscription
            self._subject = own_subject(self._nc, self._below)
            try:
                self._subscription = await self._nc.subscribe(f"{self._subject}.*", cb=self._on_message)
            except BaseException:
                self._open = False
                raise
        return f"{self._subject}.caller"

    async def close(self) -> None:
        """Unsubscribe; requests that still wait end as cancelled."""
        subscription, self._subscription, self._open = self._subscription, None, False
        for _, reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(Cancelled(CLOSED))
        if subscription is not None and not self._nc.is_closed:
            await subscription.unsubscribe()

    @contextmanager
    def expecting(self, request_id: str) -> Iterator[tuple[str, "asyncio.Future[Msg]"]]:
        """The reply subject of a request, and its reply or the server's message that nobody listens."""
        token = secrets.token_hex(8)  # not the id, which readers of the subject must not learn
        reply: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = request_id, reply
        try:
            yield f"{self._subject}.{token}", reply
        finally:
            del self._waiting[token]

    async def _on_message(self, message: Msg) -> None:
        waits = self._waiting.get(message.subject.rpartition(".")[2])
        if waits is None:
            return
        request_id, reply = waits
        if not reply.done() and (carries(message, request_id) or nobody_listens(message)):
            reply.set_result(message)
