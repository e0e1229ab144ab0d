"""What fine-tuning leaves behind goes in time: versions, their archives, training data, and runs that are over.

Owns which of it may go, beyond count and age: never the live or the previous version of a model, nothing of a model
that a job works on, no run of a job that goes on. How a thing is removed is known to where it is kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import structlog

from models.errors import ModelError
from models.training.data.retention import prune_training_data
from models.weights.durable import clear_leftovers, discard
from models.weights.version_history import verdict_of
from models.weights.versions import live_version, prune, versions
from subjects.errors import MLError
from subjects.jobs import TERMINAL, Job

from ..config import Settings
from .fleet.live import Live
from .retry import TROUBLE

log = structlog.get_logger(__name__)

_ALL = 10**9
_FOR_EVER_DAYS = 365_000
"""Longer than that is as good as never, and what a date can go back."""


@dataclass(frozen=True, slots=True)
class Archived:
    """A version in the object bucket, and when it was put there."""

    model: str
    version: str
    at: datetime


class Jobs(Protocol):
    """Who knows the jobs: store.JobStore."""

    async def get(self, job_id: str) -> Job | None:
        """One as it stands."""

    async def list(self, *, limit: int) -> list[Job]:
        """The newest ones."""


class LiveOnes(Protocol):
    """Who knows what is live in the fleet: live.LiveVersions."""

    async def all(self) -> Mapping[str, Live]:
        """By model."""


class Archives(Protocol):
    """The versions in the object bucket, for workers on other machines."""

    async def list(self) -> Sequence[Archived]:
        """All of them."""

    async def remove(self, model: str, version: str) -> None:
        """Nothing there is no error."""


class Pruning:
    """Prunes as settings.finetune.keep_versions and keep_days say: what is beyond both goes.

    Versions that never served go as `candidates` says, so that whoever has models trained fills no disk.
    """

    def __init__(self, settings: Settings, jobs: Jobs, live: LiveOnes, archives: Archives) -> None:
        self._settings = settings
        self._keep = settings.finetune.keep_versions
        self._jobs = jobs
        self._live = live
        self._archives = archives
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Remove what may go now. What goes wrong is logged, and tried again the next time."""
        async with self._one_at_a_time:
            before = datetime.now(UTC) - timedelta(days=min(self._settings.finetune.keep_days, _FOR_EVER_DAYS))
            await _attempt("training_data", lambda: self._training_data(before))
            await _attempt("runs", self._runs)
            await _attempt("versions", lambda: self._versions(before))
            await _attempt("archives", self._archived)

    async def _training_data(self, before: datetime) -> None:
        folder = self._settings.training_data_dir
        _log_removed("training_data", await asyncio.to_thread(prune_training_data, folder, self._keep, before))

    async def _runs(self) -> None:
        """First the folders, then the jobs: a job is there before its folder is."""
        folder = self._settings.runs_dir
        await asyncio.to_thread(clear_leftovers, folder)
        found = await asyncio.to_thread(_folders, folder)
        jobs = {name: await self._jobs.get(name) for name in found}
        over = [name for name, job in jobs.items() if job is None or job.state in TERMINAL]
        for name in over:
            await asyncio.to_thread(discard, folder / name)
        _log_removed("runs", over)

    async def _versions(self, before: datetime) -> None:
        checkpoints = self._settings.checkpoints_dir
        models = set(await asyncio.to_thread(_folders, checkpoints))
        if not models:
            return
        live = await self._live.all()
        for model in sorted(models - await self._worked_on()):
            here = await asyncio.to_thread(live_version, checkpoints, model)
            if model in live and live[model].version != here:
                continue  # it is about to be the live one here too
            removed = await asyncio.to_thread(self._pruned, model, _served(live.get(model)), before)
            _log_removed("versions", [f"{model}/{version}" for version in removed])

    def _pruned(self, model: str, served: Collection[str], before: datetime) -> list[str]:
        """What served goes by count and age; of the rest, which anybody may have had trained, a few stay."""
        where = self._settings.checkpoints_dir, model
        others = set(versions(*where)).difference(served)
        accepted = {name for name in others if _is_accepted(where[0] / model / name)}
        most = self._settings.finetune.candidates
        return [
            *prune(*where, served, self._keep, before),
            *prune(*where, accepted, most),
            *prune(*where, others - accepted, most),
        ]

    async def _archived(self) -> None:
        """Those beyond the counts, whoever still has the version."""
        listed = sorted(await self._archives.list(), key=lambda one: (one.at, one.version), reverse=True)
        live, worked_on = await self._live.all(), await self._worked_on()
        for model in {one.model for one in listed} - worked_on:
            served, kept = _served(live.get(model)), _live_names(live.get(model))
            sent = [one.version for one in listed if one.model == model]
            # By count alone: a machine that has the version can send it again, and the bucket is not endless.
            beyond = [version for version in sent if version in served][self._keep :]
            beyond += [version for version in sent if version not in served][self._settings.finetune.candidates :]
            gone = [version for version in beyond if version not in kept]
            for version in gone:
                await self._archives.remove(model, version)
            _log_removed("archives", [f"{model}/{version}" for version in gone])

    async def _worked_on(self) -> set[str]:
        """The models that jobs make versions of: each has a parent, and maybe a version that is not live yet."""
        at_rest = {*TERMINAL, "queued"}
        return {job.model for job in await self._jobs.list(limit=_ALL) if job.state not in at_rest}


async def _attempt(what: str, work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except (MLError, ModelError, *TROUBLE) as error:
        log.warning("pruning.failed", what=what, reason=str(error) or repr(error))
    except Exception:
        log.exception("pruning.broke", what=what)


def _folders(folder: Path) -> list[str]:
    """The names of the folders in one; those that begin with a dot are about to appear, or to go."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))


def _live_names(live: Live | None) -> set[str]:
    """What the fleet serves of a model, and goes back to."""
    return {one.version for one in (live, live and live.previous) if one is not None}


def _served(live: Live | None) -> set[str]:
    """What the fleet serves of a model, or has served."""
    return {*live.served, *_live_names(live)} if live else set()


def _is_accepted(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        verdict = verdict_of(folder)
        return verdict is not None and verdict.accepted
    return False


def _log_removed(what: str, removed: Sequence[str]) -> None:
    if removed:
        log.info("pruning.removed", what=what, names=list(removed))
