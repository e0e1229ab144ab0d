"""The states of a job as they change, for callers that know its id.

An event only triggers a read of the job's key, which alone counts.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg

from subjects import names
from subjects.jobs import TERMINAL, Job

from .retry import retry_while_down
from .store import JobStore

POLL_S = 10.0
"""A job is also read without an event: one can be lost with the connection."""


@asynccontextmanager
async def job_events(nc: Client, job_id: str, on_event: Callable[[Msg], Awaitable[None]]) -> AsyncIterator[None]:
    """Inside, `on_event` is called with each event of the job.

    Of all jobs' events, which are subscribed to: monitoring shows subscriptions, and an id is a secret.
    """

    async def on_any(event: Msg) -> None:
        if event.subject == names.job_event_subject(job_id):
            await on_event(event)

    events = await nc.subscribe(names.job_event_subject("*"), cb=on_any)
    try:
        yield
    finally:
        if not nc.is_closed:
            await events.unsubscribe()


@dataclass(frozen=True, slots=True)
class JobWatch:
    """Watches jobs, each with a subscription of its own."""

    nc: Client
    store: JobStore
    poll_s: float = POLL_S

    async def states(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The present state of a job, then each new one, until it ends. States in quick succession are skipped.

        Waits for a server that goes down meanwhile. Raises NotFound, also once the job is forgotten, NotSetUp, and
        for the first state what an absent server raises.
        """
        changed = asyncio.Event()

        async def on_event(event: Msg) -> None:
            changed.set()

        async with job_events(self.nc, job_id, on_event):
            job = await self.store.require(job_id)
            yield job
            while job.state not in TERMINAL:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.poll_s):
                        await changed.wait()
                changed.clear()
                seen, job = job, await retry_while_down(lambda: self.store.require(job_id))
                if job != seen:
                    yield job
