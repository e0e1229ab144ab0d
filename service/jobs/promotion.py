"""Promotion of versions by the administrator: now by name, or once the job that makes one has passed."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from models.catalogue import Catalogue
from models.weights.version_history import verdict_of
from models.weights.versions import BASE, version_folder
from subjects import names
from subjects.errors import Conflict, InvalidField
from subjects.jobs import TERMINAL, Job

from .fleet.rollout import RolledBack, Rollout
from .store import JobStore


@dataclass(frozen=True, slots=True)
class Promotion:
    """Promotes versions. A promotion that is cut off is undone: the version before it is live again."""

    store: JobStore
    catalogue: Catalogue
    rollout: Rollout

    async def of_job(self, job_id: str) -> tuple[Job, Sequence[str]]:
        """Promote a job's version, now or once the job has passed -> the job, notes for the caller.

        Raises NotFound, Conflict if the job made no version, and as of_version.
        """
        job = await self.store.request_promotion(job_id)
        if job.state not in TERMINAL:
            return job, ()
        if job.state != "done" or job.version is None:
            raise Conflict(f"job {job_id!r} is {job.state}, so there is nothing to promote: {job.reason}")
        return job, await self.of_version(job.model, job.version)

    async def of_version(self, model: str, version: str) -> Sequence[str]:
        """Have every worker serve an accepted version -> notes for the caller.

        Raises UnknownModel, UnknownVersion, InvalidField, Conflict if it was rejected or is rolled back, and what
        Rollout.go_live raises.
        """
        self.catalogue.get(model)
        if version == BASE:
            raise InvalidField(f"field 'version': {BASE} is the model's own; {names.MODELS_RELOAD} goes back to it")
        await self.rollout.fetch(model, version)
        folder = version_folder(self.rollout.checkpoints.folder, model, version)
        verdict = await asyncio.to_thread(verdict_of, folder) if folder else None
        if verdict is None or not verdict.accepted:
            why = "; ".join(verdict.reasons) if verdict else "it has no report"
            unproven = f"version {version} of model {model!r} has not proved itself: {why}"
            raise Conflict(f"{unproven}. {names.MODELS_RELOAD} would have it serve all the same")
        try:
            return await self.rollout.go_live(model, version)
        except (RolledBack, FileNotFoundError) as error:
            raise Conflict(str(error)) from error
