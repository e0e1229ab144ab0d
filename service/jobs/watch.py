"""A job as it goes on, for whoever knows its id: how it stands, then each newer state of it, until it is over.

What workers publish of a job only says that there is something to look at: its key is what counts.
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

LOOK_AGAIN_S = 10.0
"""How soon it looks by itself where it hears nothing: an event is lost with a connection."""


class Watch:
    """Any number of watches, each with a subscription of its own."""

    def __init__(self, nc: Client, store: JobStore, look_again_s: float = LOOK_AGAIN_S) -> None:
        self._nc = nc
        self._store = store
        self._look_again_s = look_again_s

    async def states(self, job_id: str) -> AsyncGenerator[Job, None]:
        """The states of a job, the last of them its end; of several at once the newest.

        A server that goes away meanwhile is waited for. Raises NotFound, also once the job is forgotten, NotSetUp,
        and for the first state what an absent server raises.
        """
        news = asyncio.Event()

        async def on_event(event: Msg) -> None:
            if event.subject == names.job_event_subject(job_id):
                news.set()

        # To the events of all jobs: a server that is monitored shows subscriptions, and an id is a secret.
        events = await self._nc.subscribe(names.job_event_subject("*"), cb=on_event)
        try:
            job = await self._look(job_id)
            yield job
            while job.state not in TERMINAL:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._look_again_s):
                        await news.wait()
                news.clear()
                seen, job = job, await retry_while_down(lambda: self._look(job_id))
                if job != seen:
                    yield job
        finally:
            if not self._nc.is_closed:
                await events.unsubscribe()

    async def _look(self, job_id: str) -> Job:
        job = await self._store.get(job_id)
        if job is None:
            raise no_such_job(job_id)
        return job
