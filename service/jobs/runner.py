"""Runs one job: its stages until they end or the job is cancelled, and what each kind of end means for the queue."""

import asyncio
import errno
import functools
from dataclasses import dataclass
from enum import Enum
from typing import Any

import structlog
from nats.aio.client import Client

from models.errors import ModelError
from models.training.errors import DISK_FULL
from subjects.finetune import FinetuneRequest

from ..runtime.background import cancel_and_wait
from .lease import JobLease, LeaseLost, PromotionRequested
from .retry import TROUBLE, retry_while_down
from .stages import Stages
from .step_process import StepCrashed, StepFailed
from .store import JobStore

log = structlog.get_logger(__name__)

_UNPROVEN = {"failed", "cancelled"}
"""States that require undoing the job's roll-out: a worker killed during the swap has not checked it."""
HAND_BACK_S = 5.0
"""How long a stopping worker tries to queue its job again."""


class Ending(Enum):
    """What happens to a job's message in the queue.

    OVER: it is acknowledged. AGAIN: it is delivered again. LOST: another worker has it. DROPPED: nobody can use it.
    """

    OVER = "over"
    AGAIN = "again"
    LOST = "lost"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class JobRunner:
    """Runs jobs, one at a time. worker: this worker's id; attempts: how often a job is tried."""

    nc: Client
    store: JobStore
    stages: Stages
    worker: str
    attempts: int

    async def handle(self, request: FinetuneRequest) -> Ending:
        """Run a job, or continue it, until it has ended or must be tried again.

        request: with its id and its model. A cancellation of this task hands the job back to the queue.
        """
        assert request.id is not None
        try:
            lease = await JobLease.begin(self.store, self.nc, request.id, self.worker, self.attempts)
        except LeaseLost:
            await self._clean_up(request)
            return Ending.OVER
        log.info("job.began", job=request.id, model=lease.job.model, attempt=lease.job.attempt)
        try:
            async with lease.listening():
                return await self._run(lease, request)
        except LeaseLost:
            log.warning("job.lost", job=request.id)
            return Ending.LOST

    async def _run(self, lease: JobLease, request: FinetuneRequest) -> Ending:
        """Run the stages until they end or the lease does."""
        work = asyncio.create_task(self.stages.work(lease, request), name=f"job.{lease.job.id}")
        ended = asyncio.create_task(lease.ended.wait())
        try:
            await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await cancel_and_wait(work, ended)
            await self._hand_back(lease)
            raise
        finished = work.done()
        await cancel_and_wait(work, ended)
        if finished:
            return await self._settle(lease, request, work)
        if not lease.cancelled:
            raise LeaseLost
        return await self._end(lease, state="cancelled", reason="cancelled on request", eta_s=None)

    async def _settle(self, lease: JobLease, request: FinetuneRequest, work: "asyncio.Task[dict[str, Any]]") -> Ending:
        """End the job as its stages ended."""
        try:
            return await self._end(lease, **work.result())
        except LeaseLost:
            raise
        except PromotionRequested:
            return await self._run(lease, request)
        except Exception as error:
            if (reason := self._failure(lease.job.id, error)) is None:
                return await self._crashed(lease, error)
            return await self._fail(lease, reason)

    def _failure(self, job_id: str, error: Exception) -> str | None:
        """Why the job failed; None if it broke, so that trying again may help."""
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DISK_FULL.format(folder=error.filename or self.stages.runs.folder(job_id).path)
        return str(error) if isinstance(error, StepFailed | ModelError) else None

    async def _clean_up(self, request: FinetuneRequest) -> None:
        """After a job that ended without a worker: cancelled in the queue, or out of attempts."""
        assert request.id is not None
        assert request.model is not None
        job = await retry_while_down(functools.partial(self.store.get, request.id))
        if job is not None and job.state in _UNPROVEN:
            await self.stages.rollout.abandon(request.model, request.id)
        await self.stages.runs.remove(request.id)

    async def _end(self, lease: JobLease, **fields: Any) -> Ending:
        if fields["state"] in _UNPROVEN:
            await self.stages.rollout.abandon(lease.job.model, lease.job.id)
        await lease.update(**fields)
        await self.stages.runs.remove(lease.job.id)
        log.info("job.ended", job=lease.job.id, state=lease.job.state, reason=lease.job.reason)
        return Ending.OVER

    async def _fail(self, lease: JobLease, reason: str) -> Ending:
        return await self._end(lease, state="failed", reason=reason, eta_s=None)

    async def _crashed(self, lease: JobLease, error: Exception) -> Ending:
        """Try again if an attempt is left."""
        foreseen = isinstance(error, StepCrashed)
        log.error("job.crashed", job=lease.job.id, attempt=lease.job.attempt, exc_info=None if foreseen else error)
        reason = str(error) if foreseen else f"it broke ({type(error).__name__}); the worker's log tells more"
        if lease.job.attempt >= self.attempts:
            ending = f"attempt {lease.job.attempt} of {self.attempts} ended so: {reason}"
            return await self._fail(lease, ending)
        await lease.hand_back(f"attempt {lease.job.attempt} ended so, another follows: {reason}", counted=True)
        return Ending.AGAIN

    async def _hand_back(self, lease: JobLease) -> None:
        try:
            async with asyncio.timeout(HAND_BACK_S):
                await lease.hand_back("its worker was stopped; another one goes on", counted=False)
        except (LeaseLost, *TROUBLE) as error:
            log.warning("job.not_handed_back", job=lease.job.id, error=repr(error))
