"""What a worker does with one job: work on it until it is done or somebody's word ends it, and what each end means.

Knows neither the stages of the work (stages.py) nor the queue (queue.py); whose the job is, the hold knows (lease.py).
"""

import asyncio
import errno
import functools
from enum import Enum
from typing import Any

import structlog
from nats.aio.client import Client

from models.errors import ModelError
from models.training.errors import DiskFull
from subjects.finetune import FinetuneRequest

from ..runtime.background import stopped
from .lease import JobLease, LeaseLost, PromotionRequested
from .retry import TROUBLE, retry_while_down
from .stages import Stages
from .step_process import StepCrashed, StepFailed
from .store import JobStore

log = structlog.get_logger(__name__)

_UNPROVEN = {"failed", "cancelled"}
"""Ends after which no version of the job may be live: a worker that was killed in the swap has not proved it."""
HAND_BACK_S = 5.0
"""How long a worker that ends tries to say that the job is to go on elsewhere."""


class Ending(Enum):
    """What is to become of a job's message in the queue.

    OVER: it goes. AGAIN: it comes again. LOST: it is another worker's to say. DROPPED: nobody can do anything with it.
    """

    OVER = "over"
    AGAIN = "again"
    LOST = "lost"
    DROPPED = "dropped"


class JobRunner:
    """Does jobs, one at a time. worker: this worker's id; attempts: how often a job is begun with."""

    def __init__(self, nc: Client, store: JobStore, stages: Stages, worker: str, attempts: int) -> None:
        self._nc = nc
        self._store = store
        self._stages = stages
        self._worker = worker
        self._attempts = attempts

    async def handle(self, request: FinetuneRequest) -> Ending:
        """Do a job, or go on with it, until it is over or is to be begun again.

        request: with its id and its model. Cancelled, it hands the job back.
        """
        assert request.id is not None
        try:
            hold = await JobLease.begin(self._store, self._nc, request.id, self._worker, self._attempts)
        except LeaseLost:
            await self._over(request)
            return Ending.OVER
        log.info("job.began", job=request.id, model=hold.job.model, attempt=hold.job.attempt)
        try:
            async with hold.listening():
                return await self._watched(hold, request)
        except LeaseLost:
            log.warning("job.lost", job=request.id)
            return Ending.LOST

    async def _watched(self, hold: JobLease, request: FinetuneRequest) -> Ending:
        """Work on it until that is done, or somebody else's word ends it."""
        work = asyncio.create_task(self._stages.work(hold, request), name=f"job.{hold.job.id}")
        ended = asyncio.create_task(hold.ended.wait())
        try:
            await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await stopped(work, ended)
            await self._hand_back(hold)
            raise
        finished = work.done()
        await stopped(work, ended)
        if finished:
            return await self._settle(hold, request, work)
        if not hold.cancelled:
            raise LeaseLost
        return await self._end(hold, state="cancelled", reason="cancelled on request", eta_s=None)

    async def _settle(self, hold: JobLease, request: FinetuneRequest, work: "asyncio.Task[dict[str, Any]]") -> Ending:
        """What the work, which has ended by itself, means for the job."""
        try:
            return await self._end(hold, **work.result())
        except LeaseLost:
            raise
        except PromotionRequested:
            return await self._watched(hold, request)
        except (StepFailed, ModelError) as error:
            return await self._end(hold, state="failed", reason=str(error), eta_s=None)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                where = error.filename or str(self._stages.runs.folder(hold.job.id).path)
                return await self._end(hold, state="failed", reason=str(DiskFull(str(where))), eta_s=None)
            return await self._crashed(hold, error)
        except Exception as error:
            return await self._crashed(hold, error)

    async def _over(self, request: FinetuneRequest) -> None:
        """Clear up after a job that ended without us: cancelled while nobody had it, or out of attempts."""
        assert request.id is not None
        assert request.model is not None
        job = await retry_while_down(functools.partial(self._store.get, request.id))
        if job is not None and job.state in _UNPROVEN:
            await self._stages.swap.abandon(request.model, request.id)
        await self._stages.runs.remove(request.id)

    async def _end(self, hold: JobLease, **fields: Any) -> Ending:
        if fields["state"] in _UNPROVEN:
            await self._stages.swap.abandon(hold.job.model, hold.job.id)
        await hold.update(**fields)
        await self._stages.runs.remove(hold.job.id)
        log.info("job.ended", job=hold.job.id, state=hold.job.state, reason=hold.job.reason)
        return Ending.OVER

    async def _crashed(self, hold: JobLease, error: Exception) -> Ending:
        """Another attempt, if one is left."""
        foreseen = isinstance(error, StepCrashed)
        log.error("job.crashed", job=hold.job.id, attempt=hold.job.attempt, exc_info=None if foreseen else error)
        reason = str(error) if foreseen else f"it broke ({type(error).__name__}); the worker's log tells more"
        if hold.job.attempt >= self._attempts:
            ending = f"attempt {hold.job.attempt} of {self._attempts} ended so: {reason}"
            return await self._end(hold, state="failed", reason=ending, eta_s=None)
        await hold.hand_back(f"attempt {hold.job.attempt} ended so, another follows: {reason}", counted=True)
        return Ending.AGAIN

    async def _hand_back(self, hold: JobLease) -> None:
        try:
            async with asyncio.timeout(HAND_BACK_S):
                await hold.hand_back("its worker was stopped; another one goes on", counted=False)
        except (LeaseLost, *TROUBLE) as error:
            log.warning("job.not_handed_back", job=hold.job.id, error=repr(error))
