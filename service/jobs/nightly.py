"""The training that begins by itself: asks for it when its time has come (schedule.py), on every worker of a fleet.

All of them ask under the same ids, so that only the first one counts. Knows nothing of how a job is done.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Protocol

import structlog
from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from models.errors import ModelError
from subjects.errors import MLError
from subjects.finetune import FinetuneReply, FinetuneRequest

from ..runtime.background import Background
from .retry import TROUBLE
from .schedule import Schedule
from .submission import Origin

log = structlog.get_logger(__name__)

AGAIN_S = 30.0


class Submitting(Protocol):
    """Who queues jobs (submission.py)."""

    async def submit(self, request: FinetuneRequest, origin: Origin = "request") -> FinetuneReply:
        """A request whose id is there already begins nothing new. Raises MLError, ModelError."""


@asynccontextmanager
async def nightly(
    schedule: Schedule | None,
    submission: Submitting,
    afterwards: Callable[[], Awaitable[None]],
    again_s: float = AGAIN_S,
) -> AsyncIterator[None]:
    """Submit what the schedule says, each time, while the context is open, and call `afterwards` then.

    What cannot be submitted for the moment is tried every `again_s` seconds, for as long as one may be late.
    A worker that starts a little too late does so at once. Nothing that goes wrong ends the worker.
    """
    if schedule is None:
        yield
        return
    night, background = _Night(schedule, submission, afterwards, again_s), Background()

    async def fire() -> None:
        await background.shielded(night.run(datetime.now(UTC)), "nightly")

    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # what it warns of is logged here, as all else
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
        await asyncio.sleep(0)  # it shuts down in the loop's next turn
        await background.close()


class _Night:
    """What is done each time."""

    def __init__(
        self,
        schedule: Schedule,
        submission: Submitting,
        afterwards: Callable[[], Awaitable[None]],
        again_s: float,
    ) -> None:
        self._schedule = schedule
        self._submission = submission
        self._afterwards = afterwards
        self._again_s = again_s

    async def run(self, now: datetime) -> None:
        at = self._schedule.last_run(now) or now
        for request in self._schedule.requests(at):
            await self._submit(request, at + self._schedule.grace)
        await self._afterwards()

    async def _submit(self, request: FinetuneRequest, until: datetime) -> None:
        while True:
            if await self._is_settled(request) or datetime.now(UTC) >= until:
                return
            await asyncio.sleep(self._again_s)

    async def _is_settled(self, request: FinetuneRequest) -> bool:
        """Submit it -> whether that is done with: it was taken, or would be refused again."""
        try:
            reply = await self._submission.submit(request, "nightly")
        except (MLError, ModelError, *TROUBLE) as error:
            log.warning("nightly.refused", job=request.id, path=request.path, reason=str(error) or repr(error))
            return isinstance(error, ModelError) or not getattr(error, "retryable", True)
        except Exception:
            log.exception("nightly.broke", job=request.id, path=request.path)
        else:
            log.info("nightly.submitted", job=reply.job, duplicate=reply.duplicate)
        return True


def _note_missed(event: Any) -> None:
    """The worker, or its machine, was busy or asleep for too long."""
    times = getattr(event, "scheduled_run_times", None) or [event.scheduled_run_time]
    log.warning("nightly.missed", at=[time.isoformat() for time in times])
