"""Messages to receivers that may not be back yet after a reconnect: they wait until somebody listens."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from .credentials import WORKERS_INBOX

if TYPE_CHECKING:
    from .client import BusClient

RETURN_S = 5.0
"""How long receivers may take to come back after our connection was lost: theirs may have been lost too."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """A message as the command that was or will be sent, and the loop time until which it is worth sending."""

    subject: str
    command: bytes
    until: float


class HeldMessages:
    """For each subject a queue of messages, and a task that sends them in order once somebody listens.

    It sends the first one with a reply subject on which the server answers 503 if nobody does, and again after a
    pause. RETURN_S after the reconnect the messages go out in any case. size_bytes: of all that are held.
    """

    def __init__(self, client: BusClient) -> None:
        self._client = client
        self._queues: dict[str, deque[Kept]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._listens: dict[str, bool] = {}
        self._inbox = f"{WORKERS_INBOX}.{secrets.token_hex(16)}"
        self._subscribed = self._open = False
        self.size_bytes = 0

    def concern(self, subject: str, heard_at: float) -> bool:
        """Whether a message must wait here. heard_at: loop time when somebody last listened on the subject."""
        lost_at = self._client.reconnected_at
        now = asyncio.get_running_loop().time()
        return subject in self._queues or (heard_at < lost_at and now < lost_at + RETURN_S)

    def add(self, kept: Kept) -> None:
        """Hold a message behind those of its subject."""
        self._queues.setdefault(kept.subject, deque()).append(kept)
        self.size_bytes += len(kept.command)
        if self._open and kept.subject not in self._tasks:
            self._start(kept.subject)

    def take(self) -> list[Kept]:
        """Remove all messages, those of each subject in order: the connection was lost again, or closes."""
        self._open = False
        for task in self._tasks.values():
            task.cancel()
        taken = [kept for queue in self._queues.values() for kept in queue]
        for queue in self._queues.values():
            queue.clear()  # nats-py may have swallowed its task's cancellation
        self._tasks, self._queues, self.size_bytes = {}, {}, 0
        return taken

    async def open(self) -> None:
        """Begin to send: the connection is back."""
        if not self._subscribed:
            self._subscribed = True
            await self._client.subscribe(f"{self._inbox}.*", cb=self._on_answer)
        self._open = True
        for subject in self._queues:
            self._start(subject)

    def is_attempt(self, command: bytes) -> bool:
        """Whether a command was sent to see whether somebody listens: the message itself is still held."""
        return f" {self._inbox}.".encode() in command.split(b"\r\n", 1)[0]

    async def sent(self, timeout_s: float) -> None:
        """Return once nothing is held any more, or after this time."""
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=timeout_s)

    def _start(self, subject: str) -> None:
        self._tasks[subject] = asyncio.create_task(self._send(subject, self._queues[subject]), name="bus.held")

    async def _send(self, subject: str, queue: deque[Kept]) -> None:
        """Send a subject's messages, and those that come meanwhile."""
        with suppress(NatsError):
            await self._until_somebody_listens(queue)
        while queue:
            await self._client.send_kept(self._pop(queue))
        if self._queues.get(subject) is queue:
            del self._queues[subject], self._tasks[subject]

    async def _until_somebody_listens(self, queue: deque[Kept]) -> None:
        """Return once the first message has arrived, and is removed, or RETURN_S is over."""
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while queue and (left_s := self._client.reconnected_at + RETURN_S - loop.time()) > 0:
            if queue[0].until <= loop.time():
                self._pop(queue)
            elif await self._arrives(queue[0]):
                self._pop(queue)
                return
            else:
                await asyncio.sleep(min(pause_s, left_s))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _arrives(self, kept: Kept) -> bool:
        if not self._client.is_connected:
            return False
        answer = f"{self._inbox}.{secrets.token_hex(16)}"
        self._listens[answer] = True
        try:
            await self._client._send_command(_with_reply(kept.command, answer))
            await self._client.flush()  # the server's 503 comes before its PONG
            return self._listens[answer] and self._client.is_connected  # else it was no barrier
        finally:
            del self._listens[answer]

    async def _on_answer(self, msg: Msg) -> None:
        if msg.subject in self._listens and (msg.headers or {}).get("Status") == "503":
            self._listens[msg.subject] = False

    def _pop(self, queue: deque[Kept]) -> Kept:
        kept = queue.popleft()
        self.size_bytes -= len(kept.command)
        self._client.eased.set()
        return kept


def _with_reply(command: bytes, reply: str) -> bytes:
    """A PUB or HPUB command with this reply subject instead of its own."""
    line, rest = command.split(b"\r\n", 1)
    verb, subject, _, sizes = line.split(b" ", 3)
    return b"%s %s %s %s\r\n%s" % (verb, subject, reply.encode(), sizes, rest)
