"""The stages of a job, from the code to the swap: their order, and what the job shows of them."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

from models.catalogue import Catalogue
from models.errors import OverBudget
from models.sandbox.limits import ProcessLimits
from models.training.data.records import Manifest
from models.training.progress import Candidate, Event, Measured, Note, Trained
from models.weights.version_history import OWN_DATA, Verdict, verdict_of
from models.weights.versions import TrainingRecord, keep, record_of, version_name, versions
from subjects.finetune import FinetuneRequest

from ..residency.reservations import MemoryReservations
from .fleet.rollout import RolledBack, Rollout
from .lease import JobLease
from .retry import retry_while_down
from .runs import Prepared, Runs
from .step_process import Step, Steps
from .store import JobStore

READING = ProcessLimits(memory_bytes=4 * 2**30, cpu_s=600, wall_s=1200)
"""Limits of the step that reads a caller's data."""
Outcome: TypeAlias = dict[str, Any]
"""The fields that a job ends with. promote: its value when the end was decided."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Runs the stages of a job one after the other. checkpoints: the folder of all versions."""

    store: JobStore
    catalogue: Catalogue
    checkpoints: Path
    runs: Runs
    steps: Steps
    reservations: MemoryReservations
    rollout: Rollout

    async def work(self, lease: JobLease, request: FinetuneRequest) -> Outcome:
        """Run the job, continuing an attempt that was cut off -> the fields that it ends with.

        Raises LeaseLost, PromotionRequested, StepFailed, StepCrashed, ModelError, OSError.
        """
        async with self.runs.locked(lease.job.id):
            await lease.check()
            version = lease.job.version
            if version is None or version not in await asyncio.to_thread(versions, self.checkpoints, lease.job.model):
                run = await self._prepare(lease, request)
                if await self._is_known(lease, run, request):
                    return {"state": "skipped", "reason": "the code did not change since it was last trained on"}
                version = await self._make(lease, run)
            return await self._conclude(lease, request, version)

    async def _prepare(self, lease: JobLease, request: FinetuneRequest) -> Prepared:
        run = await self.runs.prepare(lease.job, request, self.catalogue.get(lease.job.model))
        await lease.update(parent=run.spec.parent, version=None, metrics={})
        if request.path is None:
            await self._step(lease, run, "collect", limits=READING)
            return run
        if not run.spec.options.hard_negatives:
            await self._step(lease, run, "collect")
            return run
        async with self._granted(lease, run):  # the step loads the model to find hard negatives
            await self._step(lease, run, "collect")
        return run

    @asynccontextmanager
    async def _granted(self, lease: JobLease, run: Prepared, **fields: Any) -> AsyncIterator[Callable[[int], None]]:
        """Inside, the training's memory is reserved. fields: of the job, set while it waits for the memory."""
        await lease.update(**fields, reason="waits for memory")
        reserve = functools.partial(self.reservations.reserve, f"finetune.{run.spec.entry.id}", run.device)
        async with AsyncExitStack() as stack:
            try:
                resize = await stack.enter_async_context(reserve(run.memory_bytes))
            except OverBudget as error:
                left = error.budget - error.in_use
                if run.spec.memory_bytes or left <= 0:
                    raise
                resize = await stack.enter_async_context(reserve(left))  # the estimate may be too high
            await lease.update(reason=None)
            yield resize

    async def _is_known(self, lease: JobLease, run: Prepared, request: FinetuneRequest) -> bool:
        """Whether a nightly job would train on the same code as the last one."""
        if lease.job.origin != "nightly" or request.path is None:
            return False
        content = await asyncio.to_thread(run.folder.manifest.read_bytes)
        trained_on = await retry_while_down(lambda: self.store.trained_on(lease.job.model, str(request.path)))
        return trained_on == Manifest.model_validate_json(content).digest

    async def _make(self, lease: JobLease, run: Prepared) -> str:
        """Train, verify and keep a candidate -> its version."""
        model = run.spec.entry.id
        async with self._granted(lease, run, state="training") as resize:
            await self._step(lease, run, "train", resize)
            await lease.update(state="verifying", eta_s=None)
            await self._step(lease, run, "verify")
        record = await asyncio.to_thread(_record, run.folder.candidate)
        version = version_name(record.created_at, record.weights_sha256)
        await lease.update(version=version)
        await asyncio.to_thread(keep, run.folder.candidate, self.checkpoints, model, version)
        return version

    async def _conclude(self, lease: JobLease, request: FinetuneRequest, version: str) -> Outcome:
        """Reject, offer or promote the version -> the fields that the job ends with."""
        model, folder = lease.job.model, self.checkpoints / lease.job.model / version
        record = await asyncio.to_thread(_record, folder)
        verdict = await asyncio.to_thread(_verdict, folder)
        outcome: Outcome = {"version": version, "metrics": verdict.metrics, "reason": None}
        if lease.job.origin == "nightly" and not (verdict.accepted and lease.job.promote):
            await self._note_trained(model, request, record)
        if not verdict.accepted:
            return {**outcome, "state": "rejected", "reason": "; ".join(verdict.reasons)}
        if verdict.judged:
            lease.note(f"judged: {verdict.judged}")
        promote = lease.job.promote
        if not promote or verdict.judged == OWN_DATA:
            for note in await self.rollout.offer(model, version):
                lease.note(note)
            why = f" that was judged {OWN_DATA}" if promote else ""
            reason = f"kept as a candidate{why}; promote with: mlbus models promote {model} {version}"
            return {**outcome, "state": "done", "reason": reason, "promote": promote}
        await lease.update(state="swapping", **outcome)
        try:
            for note in await self.rollout.go_live(model, version, lease.job.id, record.parent):
                lease.note(note)
        except RolledBack as error:
            return {**outcome, "state": "rejected", "reason": str(error)}
        await self._note_trained(model, request, record)
        return {**outcome, "state": "done"}

    async def _note_trained(self, model: str, request: FinetuneRequest, record: TrainingRecord) -> None:
        """Have the nightly run skip this code.

        Called only for a version that is live or that the nightly run made: another caller's candidate must not keep
        the nightly run from training.
        """
        if request.path is not None:
            digest = str(record.data.get("digest", ""))
            await retry_while_down(lambda: self.store.note_trained(model, str(request.path), digest))

    async def _step(
        self,
        lease: JobLease,
        run: Prepared,
        step: Step,
        resize: Callable[[int], None] = lambda _: None,
        limits: ProcessLimits | None = None,
    ) -> None:
        """resize: called with the memory that the step needs, in bytes, once it is measured."""

        def hear(event: Event) -> None:
            match event:
                case Note():
                    lease.note(event.text)
                case Candidate(stopped=str(reason)):
                    lease.note(f"the training stopped early: {reason}")
                case Measured():
                    took = timedelta(seconds=round(event.eta_s))
                    lease.note(f"expected to take {took} and {event.memory_bytes / 1e9:.1f} GB of memory")
                    lease.progress(eta_s=event.eta_s)
                    resize(event.memory_bytes)
                case Trained():
                    lease.progress(**event.model_dump(include={"step", "steps", "loss", "pairs_per_s", "eta_s"}))

        await self.steps.run(step, run.folder.path, hear, limits)


def _record(folder: Path) -> TrainingRecord:
    record = record_of(folder)
    if record is None:
        raise FileNotFoundError(f"{folder} holds no record of a training")
    return record


def _verdict(folder: Path) -> Verdict:
    verdict = verdict_of(folder)
    if verdict is None:
        raise FileNotFoundError(f"{folder} holds no verification report")
    return verdict
