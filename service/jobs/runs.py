"""The folders of runs, `runs/<job>/`: `run.json` tells a job's steps what to do, `given.jsonl` holds given pairs."""

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import TypeAlias

import structlog
from nats.aio.client import Client
from pydantic import ValidationError

from models.catalogue import ModelSpec
from models.training.errors import PathRefused
from models.training.run import RunFolder, RunSpec, TrainingOptions
from models.weights import hub
from models.weights.durable import discard, publish_file, temporary_name, write_durably
from models.weights.versions import BASE, version_folder
from subjects import names
from subjects.errors import InvalidField, NotFound, NotServed, TooLarge
from subjects.finetune import FinetuneRequest, TrainingPair
from subjects.jobs import Job

from ..settings import Settings
from .objects import Objects
from .step_process import StepFailed

log = structlog.get_logger(__name__)

Needs: TypeAlias = Callable[[ModelSpec, Path, TrainingOptions], tuple[str, int]]
"""Estimates a training: entry, folder of the weights, options -> device, bytes."""
_LOCK_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A run whose steps can begin. device, memory_bytes: of its training, estimated."""

    folder: RunFolder
    spec: RunSpec
    device: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Runs:
    """Runs below `settings.runs_dir`. nc: for fetching objects. threads: compute threads of a step."""

    settings: Settings
    nc: Client
    needs: Needs
    threads: int

    def folder(self, job_id: str) -> RunFolder:
        """The folder of a job's run, as an absolute path."""
        return RunFolder(self.settings.runs_dir.absolute() / job_id)

    @asynccontextmanager
    async def locked(self, job_id: str) -> AsyncIterator[None]:
        """Inside, no other process of this machine works on this run.

        A frozen worker whose job was taken over may still hold the lock; then this waits.
        """
        with _opened_lock(self.folder(job_id).path) as file:  # here: a cancelled thread would leave it open
            while not _try_lock(file):
                log.info("run.locked", job=job_id)
                await asyncio.sleep(_LOCK_RETRY_S)
            yield

    async def prepare(self, job: Job, request: FinetuneRequest, entry: ModelSpec) -> Prepared:
        """Write what the steps are to do, or continue what an interrupted attempt has left.

        Raises StepFailed, ModelError, OSError.
        """
        folder = self.folder(job.id)
        spec, device, needed = await asyncio.to_thread(self._spec, job, request, entry)
        before = await asyncio.to_thread(_left, folder)
        if before is not None and before.parent == spec.parent and before.base == spec.base:
            log.info("run.resumed", job=job.id, parent=spec.parent)
            spec = before
        else:
            await asyncio.to_thread(_clear, folder)
            await self._write_given(folder, request)
            await asyncio.to_thread(write_durably, folder.spec, spec.model_dump_json(indent=2).encode())
        return Prepared(folder, spec, device, spec.memory_bytes or needed)

    async def remove(self, job_id: str) -> None:
        """Remove a run's files, if there are any."""
        try:
            await asyncio.to_thread(discard, self.folder(job_id).path)
        except OSError as error:
            log.warning("run.not_removed", job=job_id, error=str(error))

    def _spec(self, job: Job, request: FinetuneRequest, entry: ModelSpec) -> tuple[RunSpec, str, int]:
        """The run's specification by the present settings, the device, and an estimate of its memory in bytes."""
        settings = self.settings
        live = version_folder(settings.checkpoints_dir, entry.id)
        base = (live or hub.locate(entry, download=False)).absolute()
        options = TrainingOptions.model_validate(request.options.model_dump())
        if request.path and not settings.finetune.roots:
            raise PathRefused(request.path, "this worker's finetune.roots are empty; name a folder there")
        device, needed = self.needs(entry, base, options)
        memory_gb, judge = settings.finetune.memory_gb, settings.finetune.judge
        spec = RunSpec(
            job=job.id,
            entry=entry,
            base=base,
            parent=live.name if live else BASE,
            codebase=Path(request.path).resolve() if request.path else None,
            roots=tuple(root.resolve() for root in settings.finetune.roots),
            given=None if request.path else _given(self.folder(job.id)),
            judge=None if request.path or not judge else judge.resolve(),
            training_data=settings.training_data_dir.absolute(),
            day=job.created_at.date(),
            options=options,
            limits=settings.finetune.limits,
            device=settings.device,
            threads=self.threads,
            memory_bytes=int(memory_gb * 1e9) if memory_gb else None,
        )
        return spec, device, needed

    async def _write_given(self, folder: RunFolder, request: FinetuneRequest) -> None:
        if request.path:
            return
        temporary = temporary_name(_given(folder))
        with await asyncio.to_thread(temporary.open, "wb") as file:
            if request.pairs:
                await asyncio.to_thread(_write_pairs, file, request.pairs)
            else:  # streamed: it may be larger than the memory
                try:
                    await Objects(self.nc, names.DATA_BUCKET).copy(str(request.object), file)
                except (InvalidField, NotFound, NotServed, TooLarge) as error:
                    raise StepFailed(error.message) from None
        await asyncio.to_thread(publish_file, temporary, _given(folder))


def _given(folder: RunFolder) -> Path:
    return folder.path / "given.jsonl"


def _left(folder: RunFolder) -> RunSpec | None:
    try:
        return folder.read()
    except (OSError, ValidationError):
        return None


def _clear(folder: RunFolder) -> None:
    """Remove everything but the lock."""
    for path in folder.path.iterdir():
        if path != _lock(folder.path):
            discard(path)


def _write_pairs(file: BufferedWriter, pairs: Iterable[TrainingPair]) -> None:
    for pair in pairs:
        file.write(pair.model_dump_json().encode() + b"\n")


def _lock(path: Path) -> Path:
    return path / "lock"


def _opened_lock(path: Path) -> BufferedWriter:
    path.mkdir(parents=True, exist_ok=True)
    return _lock(path).open("wb")


def _try_lock(file: BufferedWriter) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
