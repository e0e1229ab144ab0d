"""The states of a job as they change, for callers that know its id.

An event only triggers a read of the job's key, which alone counts.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from nats.aio.client import Client
from nats.aio.msg import Msg

from subjects import names
from subjects.jobs import TERMINAL, Job

from .retry import retry_while_down
from .store import JobStore, no_such_job

POLL_S = 10.0
"""A job is also read without an event: one can be lost with the connection."""


class Watch:
    """Watches jobs, each with a subscription of its own."""

    def __init__(self, nc: Client, store: JobStore, poll_s: float = POLL_S) -> None:
        self._nc = nc
        self._store = store
        self._poll_s = poll_s

    async def states(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The present state of a job, then each new one, until it ends. States in quick succession are skipped.

        Waits for a server that goes down meanwhile. Raises NotFound, also once the job is forgotten, NotSetUp, and
        for the first state what an absent server raises.
        """
        changed = asyncio.Event()

        async def on_event(event: Msg) -> None:
            if event.subject == names.job_event_subject(job_id):
                changed.set()

        # To the events of all jobs: monitoring shows subscriptions, and an id is a secret.
        events = await self._nc.subscribe(names.job_event_subject("*"), cb=on_event)
        try:
            job = await self._read(job_id)
            yield job
            while job.state not in TERMINAL:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await changed.wait()
                changed.clear()
                seen, job = job, await retry_while_down(lambda: self._read(job_id))
                if job != seen:
                    yield job
        finally:
            if not self._nc.is_closed:
                await events.unsubscribe()

    async def _read(self, job_id: str) -> Job:
        job = await self._store.get(job_id)
        if job is None:
            raise no_such_job(job_id)
        return job
