"""Ends jobs whose message is not in the queue.

A worker may be killed between a job's key and its message, a message may not be confirmed or be dropped as unreadable,
and somebody may purge the queue.
"""

import asyncio
import functools
import json
from collections.abc import Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from nats.aio.client import Client

from subjects import names
from subjects.errors import MLError
from subjects.jobs import TERMINAL, Job

from ..bus.jetstream import api_subject
from ..runtime.background import background_task
from .bucket import NotSetUp
from .retry import TROUBLE
from .store import JobStore

log = structlog.get_logger(__name__)

EVERY_S = 60.0
LOST_AFTER = timedelta(minutes=5)
"""Longer than it takes to send a message, or another one with the same id."""
_ASK_S = 5.0
REASON = "its message is not in the queue: the worker that took the request was cut off; ask again with another id"


@dataclass(frozen=True, slots=True)
class Sweep:
    """Finds and ends such jobs. All times are the server's."""

    nc: Client
    store: JobStore
    lost_after: timedelta = LOST_AFTER

    def running(self, every_s: float = EVERY_S) -> AbstractAsyncContextManager[None]:
        """Sweeps at an interval while the context is open, whatever fails."""
        return background_task(lambda closing: self._run(closing, every_s), "jobs.sweep")

    async def once(self) -> None:
        """Sweep. Raises NotSetUp, and what an absent server raises."""
        unfinished = [job for job in await self.store.list(limit=None) if job.state not in TERMINAL]
        if not unfinished:
            return
        now, subjects = await self._queue()
        for job in unfinished:
            written = await self.store.written_at(job.id)
            is_new = written is None or written + self.lost_after >= now
            if names.job_queue_subject(job.id) not in subjects and not is_new:
                await self.store.change(job.id, functools.partial(_ended, job))

    async def _run(self, closing: asyncio.Event, every_s: float) -> None:
        while not closing.is_set():
            await asyncio.sleep(every_s)
            try:
                await self.once()
            except (MLError, *TROUBLE) as error:
                log.debug("jobs.not_swept", reason=str(error) or repr(error))
            except Exception:
                log.exception("jobs.sweep_broke")

    async def _queue(self) -> tuple[datetime, Collection[str]]:
        """-> the server's time, which nats-py does not read, and the subjects of all messages in the queue."""
        asked = json.dumps({"subjects_filter": names.job_queue_subject("*")}).encode()
        subject = api_subject(self.nc, f"STREAM.INFO.{names.JOBS_STREAM}")
        info = json.loads((await self.nc.request(subject, asked, timeout=_ASK_S)).data)
        if "error" in info:
            raise NotSetUp
        return datetime.fromisoformat(info["ts"]), info["state"].get("subjects", {})


def _ended(seen: Job, now: Job) -> Job:
    """The failed job, unless it has changed meanwhile."""
    if now != seen:
        return now
    log.warning("job.lost_its_message", job=now.id, state=now.state)
    return now.model_copy(update={"state": "failed", "reason": REASON, "eta_s": None})
