"""The stages of a job, from the code to the swap.

Owns their order and what the job shows of them. How a stage is done is known to the steps (models/training), the
residency and the rollout.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from models.catalogue import Catalogue
from models.errors import OverBudget
from models.sandbox.limits import ProcessLimits
from models.training.data.records import Manifest
from models.training.progress import Candidate, Event, Measured, Note, Trained
from models.weights.version_history import OWN_DATA, Verdict, verdict_of
from models.weights.versions import TrainingRecord, keep, record_of, version_name, versions
from subjects.finetune import FinetuneRequest

from .fleet.rollout import RolledBack
from .lease import JobLease
from .retry import retry_while_down
from .runs import Prepared, Runs
from .step_process import Step, Steps
from .store import JobStore

READING = ProcessLimits(memory_bytes=4 * 2**30, cpu_s=600, wall_s=1200)
"""Of the step that reads what a caller has sent."""
Outcome: TypeAlias = dict[str, Any]
"""The fields that a job ends with. promote: as it was when that was decided."""


class Room(Protocol):
    """Who grants memory beside the models that serve."""

    def reserve(self, name: str, device: str, memory_bytes: int) -> AbstractAsyncContextManager[Callable[[int], None]]:
        """Inside, so much is free for `name`, or what the function says; waits for it. Raises OverBudget where it never
        can be."""


class Swap(Protocol):
    """Who has every worker serve a version."""

    async def offer(self, model: str, version: str) -> Sequence[str]:
        """Keep a candidate where every worker can fetch it -> what else is to be said."""

    async def go_live(self, model: str, version: str, job: str, parent: str | None) -> Sequence[str]:
        """-> what else is to be said. Raises RolledBack. Cancelled before its end, the version before it serves; called
        again, it goes on. parent: what must be live until then."""

    async def abandon(self, model: str, job: str) -> None:
        """Go back from a version that the job named the live one, and did not prove."""


@dataclass(frozen=True, slots=True)
class Stages:
    """What the stages work with. checkpoints: the folder of all versions."""

    store: JobStore
    catalogue: Catalogue
    checkpoints: Path
    runs: Runs
    steps: Steps
    room: Room
    swap: Swap

    async def work(self, hold: JobLease, request: FinetuneRequest) -> Outcome:
        """Do the job, or go on where an attempt before it was cut off.

        Raises HoldLost, StepFailed, StepCrashed, ModelError, OSError.
        """
        async with self.runs.locked(hold.job.id):
            await hold.check()
            version = hold.job.version
            if version is None or version not in await asyncio.to_thread(versions, self.checkpoints, hold.job.model):
                run = await self._prepare(hold, request)
                if await self._is_known(hold, run, request):
                    return {"state": "skipped", "reason": "the code did not change since it was last trained on"}
                version = await self._make(hold, run)
            return await self._conclude(hold, request, version)

    async def _prepare(self, hold: JobLease, request: FinetuneRequest) -> Prepared:
        run = await self.runs.prepare(hold.job, request, self.catalogue.get(hold.job.model))
        await hold.update(parent=run.spec.parent, version=None, metrics={})
        if request.path is None:
            await self._step(hold, run, "collect", limits=READING)
            return run
        if not run.spec.options.hard_negatives:
            await self._step(hold, run, "collect")
            return run
        async with self._granted(hold, run):  # the model is loaded once more, to look for negatives with it
            await self._step(hold, run, "collect")
        return run

    @asynccontextmanager
    async def _granted(self, hold: JobLease, run: Prepared, **fields: Any) -> AsyncIterator[Callable[[int], None]]:
        """Inside, the memory that a training takes is kept from models. fields: what the job shows from now on."""
        await hold.update(**fields, reason="waits for memory")
        reserve = functools.partial(self.room.reserve, f"finetune.{run.spec.entry.id}", run.device)
        async with AsyncExitStack() as stack:
            try:
                resize = await stack.enter_async_context(reserve(run.memory_bytes))
            except OverBudget as error:
                left = error.budget - error.in_use
                if run.spec.memory_bytes or left <= 0:
                    raise
                resize = await stack.enter_async_context(reserve(left))  # the estimate may be too high
            await hold.update(reason=None)
            yield resize

    async def _is_known(self, hold: JobLease, run: Prepared, request: FinetuneRequest) -> bool:
        """Whether a nightly job would train on what the model was trained on already."""
        if hold.job.origin != "nightly" or request.path is None:
            return False
        content = await asyncio.to_thread(run.folder.manifest.read_bytes)
        trained_on = await retry_while_down(lambda: self.store.trained_on(hold.job.model, str(request.path)))
        return trained_on == Manifest.model_validate_json(content).digest

    async def _make(self, hold: JobLease, run: Prepared) -> str:
        """Train and examine a candidate, and keep it -> its version."""
        model = run.spec.entry.id
        async with self._granted(hold, run, state="training") as resize:
            await self._step(hold, run, "train", resize)
            await hold.update(state="verifying", eta_s=None)
            await self._step(hold, run, "verify")
        record = await asyncio.to_thread(_record, run.folder.candidate)
        version = version_name(record.created_at, record.weights_sha256)
        await hold.update(version=version)
        await asyncio.to_thread(keep, run.folder.candidate, self.checkpoints, model, version)
        return version

    async def _conclude(self, hold: JobLease, request: FinetuneRequest, version: str) -> Outcome:
        """What becomes of a version that is kept."""
        model, folder = hold.job.model, self.checkpoints / hold.job.model / version
        record = await asyncio.to_thread(_record, folder)
        verdict = await asyncio.to_thread(_verdict, folder)
        outcome: Outcome = {"version": version, "metrics": verdict.metrics, "reason": None}
        if hold.job.origin == "nightly" and not (verdict.accepted and hold.job.promote):
            await self._note_trained(model, request, record)
        if not verdict.accepted:
            return {**outcome, "state": "rejected", "reason": "; ".join(verdict.reasons)}
        if verdict.judged:
            hold.note(f"judged: {verdict.judged}")
        promote = hold.job.promote
        if not promote or verdict.judged == OWN_DATA:
            for note in await self.swap.offer(model, version):
                hold.note(note)
            why = f" that was judged {OWN_DATA}" if promote else ""
            reason = f"kept as a candidate{why}; promote with: mlbus models promote {model} {version}"
            return {**outcome, "state": "done", "reason": reason, "promote": promote}
        await hold.update(state="swapping", **outcome)
        try:
            for note in await self.swap.go_live(model, version, hold.job.id, record.parent):
                hold.note(note)
        except RolledBack as error:
            return {**outcome, "state": "rejected", "reason": str(error)}
        await self._note_trained(model, request, record)
        return {**outcome, "state": "done"}

    async def _note_trained(self, model: str, request: FinetuneRequest, record: TrainingRecord) -> None:
        """The code of today need not be learned tonight: what came of it serves, or the nightly run has seen to it.

        Never because of what somebody else asked for and is not live: that would keep the night from its work.
        """
        if request.path is not None:
            digest = str(record.data.get("digest", ""))
            await retry_while_down(lambda: self.store.note_trained(model, str(request.path), digest))

    async def _step(
        self,
        hold: JobLease,
        run: Prepared,
        step: Step,
        resize: Callable[[int], None] = lambda _: None,
        limits: ProcessLimits | None = None,
    ) -> None:
        """resize: is told what the step needs once that was measured."""

        def hear(event: Event) -> None:
            match event:
                case Note():
                    hold.note(event.text)
                case Candidate(stopped=str(reason)):
                    hold.note(f"the training stopped early: {reason}")
                case Measured():
                    took = timedelta(seconds=round(event.eta_s))
                    hold.note(f"expected to take {took} and {event.memory_bytes / 1e9:.1f} GB of memory")
                    hold.progress(eta_s=event.eta_s)
                    resize(event.memory_bytes)
                case Trained():
                    hold.progress(**event.model_dump(include={"step", "steps", "loss", "pairs_per_s", "eta_s"}))

        await self.steps.run(step, run.folder.path, hear, limits)


def _record(folder: Path) -> TrainingRecord:
    record = record_of(folder)
    if record is None:
        raise FileNotFoundError(f"{folder} holds no record of a training")
    return record


def _verdict(folder: Path) -> Verdict:
    verdict = verdict_of(folder)
    if verdict is None:
        raise FileNotFoundError(f"{folder} holds no report of its examination")
    return verdict
