"""Removes old versions, their archives, training data and finished runs, by count and age.

Never removed: the live and the previous version of a model, anything of a model that a job works on, and the run of a
job that has not ended.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from models.errors import ModelError
from models.training.data.dataset import prune_archive
from models.weights.durable import clear_leftovers, discard
from models.weights.version_history import verdict_of
from models.weights.versions import live_version, prune, versions
from subjects.errors import MLError
from subjects.jobs import TERMINAL

from ..settings import Settings
from .fleet.checkpoints import Checkpoints
from .fleet.live import Live, LiveVersions
from .retry import TROUBLE
from .store import JobStore

log = structlog.get_logger(__name__)

_FOR_EVER_DAYS = 365_000
"""As good as never, and within the range of dates."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """What exceeds both keep_versions and keep_days of settings.finetune goes.

    Versions that were never live are limited by `candidates`, so that callers cannot fill the disk.
    """

    settings: Settings
    jobs: JobStore
    live: LiveVersions
    checkpoints: Checkpoints
    _one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self) -> None:
        """Remove what may go now. Failures are logged, and tried again the next time."""
        async with self._one_at_a_time:
            before = datetime.now(UTC) - timedelta(days=min(self.settings.finetune.keep_days, _FOR_EVER_DAYS))
            await _attempt("training_data", lambda: self._training_data(before))
            await _attempt("runs", self._runs)
            await _attempt("versions", lambda: self._versions(before))
            await _attempt("archives", self._archived)

    async def _training_data(self, before: datetime) -> None:
        folder, keep = self.settings.training_data_dir, self.settings.finetune.keep_versions
        _log_removed("training_data", await asyncio.to_thread(prune_archive, folder, keep, before))

    async def _runs(self) -> None:
        """The folders are listed before the jobs, because a job exists before its folder."""
        folder = self.settings.runs_dir
        await asyncio.to_thread(clear_leftovers, folder)
        found = await asyncio.to_thread(_folders, folder)
        jobs = {name: await self.jobs.get(name) for name in found}
        over = [name for name, job in jobs.items() if job is None or job.state in TERMINAL]
        for name in over:
            await asyncio.to_thread(discard, folder / name)
        _log_removed("runs", over)

    async def _versions(self, before: datetime) -> None:
        checkpoints = self.settings.checkpoints_dir
        models = set(await asyncio.to_thread(_folders, checkpoints))
        if not models:
            return
        live = await self.live.all()
        for model in sorted(models - await self._worked_on()):
            here = await asyncio.to_thread(live_version, checkpoints, model)
            if model in live and live[model].version != here:
                continue  # this worker is about to swap to it
            removed = await asyncio.to_thread(self._pruned, model, _served(live.get(model)), before)
            _log_removed("versions", [f"{model}/{version}" for version in removed])

    def _pruned(self, model: str, served: Collection[str], before: datetime) -> list[str]:
        """Versions that were live go by count and age; of candidates, which any caller can have made, a few stay."""
        where = self.settings.checkpoints_dir, model
        others = set(versions(*where)).difference(served)
        accepted = {name for name in others if _is_accepted(where[0] / model / name)}
        most = self.settings.finetune.candidates
        return [
            *prune(*where, served, self.settings.finetune.keep_versions, before),
            *prune(*where, accepted, most),
            *prune(*where, others - accepted, most),
        ]

    async def _archived(self) -> None:
        """Archives beyond the counts go, even if a machine still has the version."""
        listed = sorted(await self.checkpoints.list(), key=lambda one: (one.at, one.version), reverse=True)
        live, worked_on = await self.live.all(), await self._worked_on()
        for model in {one.model for one in listed} - worked_on:
            served, kept = _served(live.get(model)), _live_names(live.get(model))
            sent = [one.version for one in listed if one.model == model]
            # By count alone: a machine that has the version can send it again, and the bucket is bounded.
            beyond = [version for version in sent if version in served][self.settings.finetune.keep_versions :]
            beyond += [version for version in sent if version not in served][self.settings.finetune.candidates :]
            gone = [version for version in beyond if version not in kept]
            for version in gone:
                await self.checkpoints.remove(model, version)
            _log_removed("archives", [f"{model}/{version}" for version in gone])

    async def _worked_on(self) -> set[str]:
        """The models of running jobs: their parent version and their new version must stay."""
        at_rest = {*TERMINAL, "queued"}
        return {job.model for job in await self.jobs.list(limit=None) if job.state not in at_rest}


async def _attempt(what: str, work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except (MLError, ModelError, *TROUBLE) as error:
        log.warning("pruning.failed", what=what, reason=str(error) or repr(error))
    except Exception:
        log.exception("pruning.broke", what=what)


def _folders(folder: Path) -> list[str]:
    """The names of its sub-folders; a leading dot marks one that is being written or removed."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if path.is_dir() and not path.name.startswith("."))


def _live_names(live: Live | None) -> set[str]:
    """The live version of a model and the one to go back to."""
    return {one.version for one in (live, live and live.previous) if one is not None}


def _served(live: Live | None) -> set[str]:
    """The versions of a model that are or were live."""
    return {*live.served, *_live_names(live)} if live else set()


def _is_accepted(folder: Path) -> bool:
    with suppress(OSError, ValueError):
        verdict = verdict_of(folder)
        return verdict is not None and verdict.accepted
    return False


def _log_removed(what: str, removed: Sequence[str]) -> None:
    if removed:
        log.info("pruning.removed", what=what, names=list(removed))
