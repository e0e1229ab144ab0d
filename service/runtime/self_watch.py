"""A worker PINGs itself over the bus at intervals: if no answer comes, it does not serve anybody any more.

It then ends, and its supervisor restarts it.
"""

import asyncio
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from nats.errors import Error as NatsError

from subjects import names

from ..bus.client import BusClient
from ..bus.credentials import WORKERS_INBOX

log = structlog.get_logger(__name__)

EVERY_S = 10.0
MISSES = 3


class SelfWatch:
    """Checks that this worker's own PINGs are answered over the bus.

    on_lost: called, once, after MISSES PINGs in a row without an answer. inbox: where answers come."""

    def __init__(self, nc: BusClient, worker_id: str, on_lost: Callable[[str], None]) -> None:
        self._nc = nc
        self._subject = f"$SRV.PING.{names.SERVICE}.{worker_id}"
        self.inbox = f"{WORKERS_INBOX}.{secrets.token_hex(16)}"
        self._on_lost = on_lost
        self._denied = False

    def on_denied(self, subject: str) -> None:
        """Note that the server refused us a subject, in lower case: without permission, silence proves nothing."""
        self._denied |= subject in (self._subject.lower(), self.inbox.lower())

    async def run(self) -> None:
        """Ask until there is no answer any more, or no permission."""
        answers, misses = await self._nc.subscribe(self.inbox), 0
        while misses < MISSES and not self._denied:
            misses = misses + 1 if await self._miss(answers) else 0
        if self._denied:
            log.warning("worker.not_watched", denied=self._subject, advice="grant what nats-server.conf grants")
        else:
            self._on_lost(f"it asked for itself over the bus {MISSES} times in a row, and nobody answered")

    async def _miss(self, answers: Any) -> bool:
        """Whether no answer came although the connection held and the loop ran; a late answer counts as one."""
        loop = asyncio.get_running_loop()
        began, connection = loop.time(), self._nc.stats["reconnects"]
        asking = asyncio.create_task(self._ask())  # a broken client may not return
        await asyncio.sleep(EVERY_S)
        asking.cancel()
        loop_ran = loop.time() - began < 2 * EVERY_S
        answered = False
        while answers.pending_msgs:
            answered |= bool((await answers.next_msg()).data)  # an empty one is the server's: nobody listens there
        return loop_ran and not answered and self._nc.is_connected and self._nc.stats["reconnects"] == connection

    async def _ask(self) -> None:
        with suppress(NatsError):
            await self._nc.publish(self._subject, reply=self.inbox)
