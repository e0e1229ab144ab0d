"""The nightly run: submits the scheduled jobs (schedule.py), on every worker of a fleet.

All workers use the same job ids, so that only the first submission counts.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog
from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from models.errors import ModelError
from subjects.errors import MLError
from subjects.finetune import FinetuneRequest

from ..runtime.background import Background
from .retry import TROUBLE
from .schedule import Schedule
from .submission import Submission

log = structlog.get_logger(__name__)

RETRY_S = 30.0


@asynccontextmanager
async def nightly(
    schedule: Schedule | None,
    submission: Submission,
    afterwards: Callable[[], Awaitable[None]],
    retry_s: float = RETRY_S,
) -> AsyncIterator[None]:
    """Submit the scheduled jobs each time while the context is open, then, without waiting for the jobs, call
    `afterwards`.

    A job that cannot be submitted now is tried again every `retry_s` seconds until the schedule's grace ends. A worker
    that starts within the grace submits at once. No failure ends the worker.
    """
    if schedule is None:
        yield
        return
    night, background = _Night(schedule, submission, afterwards, retry_s), Background()

    async def fire() -> None:
        await background.shielded(night.run(datetime.now(UTC)), "nightly")

    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # its warnings are logged below
    now = datetime.now(UTC)
    scheduler = AsyncIOScheduler(timezone=schedule.zone)
    scheduler.add_listener(_note_missed, EVENT_JOB_MISSED | EVENT_JOB_MAX_INSTANCES)
    scheduler.add_job(
        fire,
        schedule.trigger,
        coalesce=True,
        max_instances=1,
        misfire_grace_time=int(schedule.grace.total_seconds()),
        next_run_time=schedule.last_run(now) or schedule.next_run(now),
    )
    scheduler.start()
    log.info("nightly.scheduled", next=schedule.next_run(now).isoformat(), models=schedule.models)
    try:
        yield
    finally:
        scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # it shuts down in the loop's next iteration
        await background.close()


@dataclass(frozen=True, slots=True)
class _Night:
    """One run."""

    schedule: Schedule
    submission: Submission
    afterwards: Callable[[], Awaitable[None]]
    retry_s: float

    async def run(self, now: datetime) -> None:
        at = self.schedule.last_run(now) or now
        for request in self.schedule.requests(at):
            await self._submit(request, at + self.schedule.grace)
        await self.afterwards()

    async def _submit(self, request: FinetuneRequest, until: datetime) -> None:
        while True:
            if await self._is_settled(request) or datetime.now(UTC) >= until:
                return
            await asyncio.sleep(self.retry_s)

    async def _is_settled(self, request: FinetuneRequest) -> bool:
        """Submit it -> whether there is no need to try again: it was accepted, or would be refused again."""
        try:
            reply = await self.submission.submit(request, "nightly")
        except (MLError, ModelError, *TROUBLE) as error:
            log.warning("nightly.refused", job=request.id, path=request.path, reason=str(error) or repr(error))
            return isinstance(error, ModelError) or not getattr(error, "retryable", True)
        except Exception:
            log.exception("nightly.broke", job=request.id, path=request.path)
        else:
            log.info("nightly.submitted", job=reply.job, duplicate=reply.duplicate)
        return True


def _note_missed(event: Any) -> None:
    """The worker or its machine was busy or asleep for too long."""
    times = getattr(event, "scheduled_run_times", None) or [event.scheduled_run_time]
    log.warning("nightly.missed", at=[time.isoformat() for time in times])
