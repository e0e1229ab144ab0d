"""nats-py's client with workarounds for its faults, and with replies that survive the loss of a connection."""

import asyncio
import secrets
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from typing import Any

from nats.aio.client import Client, Srv
from nats.aio.subscription import Subscription
from nats.errors import ConnectionReconnectingError, SecureConnWantedError, UnexpectedEOF
from nats.errors import Error as NatsError
from nats.nuid import NUID, TOTAL_LENGTH

from .errors import UnreadableMessage
from .held_messages import HeldMessages, Kept
from .jetstream import JetStream

_PING = b"PING\r\n"
CONFIRM_S = 0.25
"""How long after a reply to ask the server, by PING, whether it has received it."""
CONFIRM_BYTES = 2**20
"""After this many bytes of replies the server is asked at once, because callers may wait for the buffer to shrink."""
CLOSE_S = 1.0
"""How long a lost connection may take to send its buffer: a peer that does not read would take many minutes."""


class _Secret(NUID):
    """Random inbox names. nats-py counts, so that one inbox of a connection gives away the next."""

    def next(self) -> bytearray:
        return bytearray(secrets.token_hex(TOTAL_LENGTH // 2).encode())


class BusClient(Client):
    """A client that keeps what `publish_kept` sent until the server is known to have received it.

    After a reconnect it sends that again, in order, once the receiver is back, until each message's time is up: a
    receiver may get a message twice, and misses none. held: what waits for receivers. kept_bytes: the size of what
    was sent and is kept. eased: set whenever either shrinks. reconnected_at: loop time of the last reconnect.

    Differences from nats-py:
    - With a tls:// url or certificates it never sends CONNECT, with the password, in the clear.
    - It closes the socket of a refused reconnect before the next attempt.
    - A PONG means that the server has received everything published before the PING.
    - A flush fails if the connection is lost meanwhile.
    - It goes on reading after a message that it cannot read (a subject that is not UTF-8, a broken header block), and
      reports it to `error_cb`. It reads the later form of ack subjects (NATS ADR-15).
    - Its inbox names are random.
    - JetStream is used in `jetstream_domain` if that is set.
    """

    def __init__(self, *, wants_tls: bool = False, jetstream_domain: str | None = None) -> None:
        super().__init__()
        self._jetstream_domain = jetstream_domain
        self._nuid = _Secret()
        self._wants_tls = wants_tls
        self._kept: deque[Kept] = deque()
        self._counted = 0
        self._publishing: tuple[str, float, bool] | None = None
        self._asked: deque[int] = deque()
        self._unasked_bytes = 0
        self._confirming: asyncio.Task[None] | None = None
        self._was_connected = False
        self._fenced: set[int] = set()
        self.held = HeldMessages(self)
        self.kept_bytes = 0
        self.eased = asyncio.Event()
        self.reconnected_at = float("-inf")

    async def publish_kept(
        self,
        subject: str,
        payload: bytes,
        *,
        reply: str = "",
        headers: dict[str, str] | None = None,
        until: float,
        heard_at: float,
    ) -> None:
        """Publish, and again after a reconnect, until a loop time. Raises what `publish` raises.

        heard_at: loop time when the receiver last listened.
        """
        self._publishing = subject, until, self.held.concern(subject, heard_at)
        try:
            await self.publish(subject, payload, reply, headers)
        finally:
            self._publishing = None

    def backlog_bytes(self, subject: str, heard_at: float) -> int:
        """The size of what is kept together with what `publish_kept` would send there."""
        return self.held.size_bytes if self.held.concern(subject, heard_at) else self.kept_bytes

    async def send_kept(self, kept: Kept) -> None:
        """Send a message and keep it until the server, which is asked soon, has received it."""
        self._kept.append(kept)
        self._counted += 1
        self.kept_bytes += len(kept.command)
        self._unasked_bytes += len(kept.command)
        await super()._send_command(kept.command)
        if self._unasked_bytes > CONFIRM_BYTES and self.is_connected:
            await self._send_ping()
        elif self._confirming is None or self._confirming.done():
            self._confirming = asyncio.create_task(self._confirm(), name="bus.confirm")

    def jetstream(self, **options: Any) -> JetStream:
        """nats-py's, except that a write that the server does not store raises NotStored."""
        return JetStream(self, **{"domain": self._jetstream_domain, **options})

    async def fence(self, subscriptions: Collection[Subscription]) -> None:
        """Unsubscribe, and return when every message that the server has sent there has been taken.

        A reconnect does not subscribe again. Raises NatsError if the connection is lost twice meanwhile.
        """
        self._fenced.update(subscription._id for subscription in subscriptions)
        for subscription in subscriptions:
            await self._send_unsubscribe(subscription._id)
        with suppress(NatsError):  # of a lost connection no more come
            await self.flush()
        await asyncio.gather(*(each.drain() for each in subscriptions))  # type: ignore[no-untyped-call]

    async def leave(self) -> None:
        """Move to another server, after leaving the queue groups."""
        for number, subscription in list(self._subs.items()):
            if subscription.queue:
                await self._send_unsubscribe(number)
        with suppress(NatsError):
            await self.flush()
        await self.force_reconnect()

    async def _confirm(self) -> None:
        await asyncio.sleep(CONFIRM_S)
        if self.is_connected:
            await self._send_ping()

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        publishing, self._publishing = self._publishing, None
        if publishing is None:
            await super()._send_command(cmd, priority)
            return
        subject, until, waits = publishing  # no await since publish_kept, so this is its command
        kept = Kept(subject, cmd, until)
        if waits:
            self.held.add(kept)
        else:
            await self.send_kept(kept)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        self._asked.append(self._counted)
        self._unasked_bytes = 0
        await self._send_command(_PING)
        await self._flush_pending()

    async def _process_pong(self) -> None:
        arrived = self._asked.popleft() if self._asked else 0
        while self._kept and self._counted - len(self._kept) < arrived:
            self.kept_bytes -= len(self._kept.popleft().command)
            self.eased.set()
        if self._pongs and self._pongs[0].done():  # of a flush that has given up
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    async def _process_connect_init(self) -> None:
        try:
            await super()._process_connect_init()
        except ValueError as error:  # nats-py would not try again
            if isinstance(error, OSError):  # as those of TLS are too
                raise
            raise NatsError(f"no greeting of a NATS server: {error}") from error
        if self._was_connected:
            self.reconnected_at = asyncio.get_running_loop().time()
            self._hold_again()
            self._subs = {number: each for number, each in self._subs.items() if number not in self._fenced}
        self._was_connected = True

    def _hold_again(self) -> None:
        """Hold what is kept and still of use, and forget the PINGs of the old connection."""
        kept = [*self._kept, *self.held.take()]
        again = {id(message.command) for message in self._kept}
        others = (command for command in self._pending if command is not _PING and id(command) not in again)
        self._pending = [command for command in others if not self.held.is_attempt(command)]
        self._pending_data_size = sum(map(len, self._pending))
        self._kept.clear()
        self._asked.clear()
        self.kept_bytes = 0
        for message in kept:
            if message.until > self.reconnected_at:
                self.held.add(message)
        self.eased.set()

    async def _read_loop(self) -> None:
        await super()._read_loop()
        if self.is_connected and not asyncio.current_task().cancelling():  # type: ignore[union-attr]
            await self._process_op_err(UnexpectedEOF())  # it failed, and nats-py only logged it

    async def _attempt_reconnect(self) -> None:
        for pong in self._pongs:
            if not pong.done():  # nats-py lets a flush wait for it
                pong.set_exception(ConnectionReconnectingError())
                pong.exception()
        lost = self._transport._io_writer.transport  # type: ignore[union-attr]
        giving_up = asyncio.get_running_loop().call_later(CLOSE_S, lost.abort)
        try:
            await super()._attempt_reconnect()
        finally:
            giving_up.cancel()
        if self.is_connected:
            await self.held.open()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        if self._confirming is not None:
            self._confirming.cancel()
        self.held.take()
        await super()._close(status, do_cbs)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and self._wants_tls and not self.options["tls_handshake_first"]:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise SecureConnWantedError
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _connect_to_server(self, s: Srv) -> None:
        if self._transport is not None:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        subscription = self._subs.get(sid)
        if subscription is not None and subscription._jsi is not None and subscription._jsi._ordered:
            reply = _first_form(reply)
        try:
            await super()._process_msg(sid, subject, reply, data, headers)
        except (ValueError, IndexError) as error:
            await self._error_cb(UnreadableMessage(subject.decode(errors="replace"), error))


def _first_form(reply: bytes) -> bytes:
    """`$JS.ACK.<domain>.<account>.<stream>.…` without domain and account; any other subject as it is."""
    tokens = bytes(reply).split(b".")
    return b".".join([*tokens[:2], *tokens[4:11]]) if tokens[:2] == [b"$JS", b"ACK"] and len(tokens) > 9 else reply
