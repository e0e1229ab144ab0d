"""Makes a version live in the whole fleet: archive shared, live key set, canary check passed, or all of it undone.

How a worker swaps to the live version is in version_sync.py.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError

from models.training.verify.check_texts import read_canary
from models.weights.archive import BadArchive
from models.weights.versions import BASE, live_version, record_of, version_folder, versions
from subjects.client.discovery import ask_workers
from subjects.errors import Unavailable

from ...bus.credentials import WORKERS_INBOX
from ...bus.errors import BusError
from ...residency.manager import ModelManager
from ...residency.reservations import Loaded
from ...runtime.background import Background
from ..bucket import NotSetUp
from ..retry import retry_while_down
from .canary import MIN_COSINE, CanaryCheck, Mismatch
from .checkpoints import BucketFull, Checkpoints
from .live import Live, LiveVersion, LiveVersions, successor
from .rollout_lease import rolling_out
from .version_sync import VersionSync

log = structlog.get_logger(__name__)

ASK_S, ASK_STALL_S = 2.0, 0.4
POLL_S = 0.5
UNDO_S = 10.0
LEAST_REPLIES = 4
"""Of a canary check: the server chooses which worker answers, so more are asked for than there are workers."""


class RolledBack(Exception):
    """A version was live for a moment and failed its canary check; the version before it is live again."""


class Rollout:
    """Makes versions live in the fleet, and undoes that.

    connect: opens another connection like nc, for transfers. checkpoints: the folder of all versions. swap_timeout_s:
    how long workers may take to swap. live: replaces the default access to the live versions. first: see VersionSync.
    """

    def __init__(
        self,
        nc: Client,
        manager: ModelManager,
        connect: Callable[[], AbstractAsyncContextManager[Client]],
        checkpoints: Path,
        swap_timeout_s: float = 300.0,
        live: LiveVersions | None = None,
        first: Collection[str] | None = None,
    ) -> None:
        self._nc = nc
        self._manager = manager
        self._swap_timeout_s = swap_timeout_s
        self._background = Background()
        self.live = live or LiveVersions(nc)
        self.checkpoints = Checkpoints(connect, checkpoints)
        self._sync = VersionSync(self.live, self.checkpoints, manager, first)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Rollout"]:
        """On entry this worker takes over the fleet's live versions if they can be had; inside it follows changes.

        Enter it before models are loaded, so that they are loaded in their live versions.
        """
        async with self._sync.running():
            try:
                yield self
            finally:
                await self._background.close()

    async def offer(self, model: str, version: str) -> list[str]:
        """Share the archive of a candidate of this machine -> notes for the caller.

        Raises NotSetUp, and OSError if it cannot be read.
        """
        if await self._share(model, version):
            return []
        return ["the candidate could not be sent to the other workers; the log of the one that made it tells why"]

    async def go_live(self, model: str, version: str, job: str | None = None, parent: str | None = None) -> list[str]:
        """Have every worker serve a version of this machine, and check it over the bus -> notes for the caller.

        While another version of the model is checked, it waits. parent: the version that must be live before, because
        this one was compared with it; None for any. A call after one that was cut off continues it. If cancelled, the
        version before is live again. Raises RolledBack, UnknownVersion, BadArchive, BucketFull, NotSetUp, and OSError
        if the version or its canary texts cannot be read.
        """
        canary = await asyncio.to_thread(self._canary, model, version)
        digests = await asyncio.to_thread(self._digests, model, version, await self.checkpoints.publish(model, version))
        async with rolling_out(self._nc, model, job):
            return await self._set_and_check(model, digests, canary, job, parent)

    async def _set_and_check(
        self, model: str, digests: LiveVersion, canary: CanaryCheck, job: str | None, parent: str | None
    ) -> list[str]:
        version, at = digests.version, datetime.now(UTC)
        try:
            await retry_while_down(lambda: self._set_live(model, digests, at, job, parent))
            log.info("version.went_live", model=model, version=version, job=job)
            return await self._check(canary)
        except Mismatch as mismatch:
            log.error("version.rolled_back", model=model, version=version, job=job, reason=str(mismatch))
            await asyncio.shield(self._start_undo(model, version, at))
            await self._wait_for_workers(model, lambda served: not served.startswith(canary.weights))
            raise RolledBack(f"version {version} was rolled back: {mismatch}") from mismatch
        except BaseException:
            await asyncio.wait({self._start_undo(model, version, at)}, timeout=UNDO_S)
            raise

    async def abandon(self, model: str, job: str) -> None:
        """Undo the version that a job made live and never checked, if there is one."""
        with suppress(NotSetUp):
            await self._undo(model, lambda live: live.job == job)

    async def go_back(self, model: str, version: str) -> Loaded:
        """Make a version, or `base`, live in the whole fleet -> what this worker then serves; others follow.

        If fine-tuning is not set up, this worker alone swaps. Raises UnknownModel, UnknownVersion and what loading
        raises.
        """
        self._manager.catalogue.get(model)
        return await self._background.shielded(self._go_back(model, version), f"go_back.{model}")

    async def serve_here(self, model: str, version: str) -> Loaded:
        """Serve a version on this worker alone, until another one goes live. Raises as go_back."""
        self._manager.catalogue.get(model)
        return await self._background.shielded(self._serve_here(model, version), f"serve_here.{model}")

    async def fetch(self, model: str, version: str) -> None:
        """Fetch a version to this machine unless it is here. Raises UnknownVersion."""
        folder = self.checkpoints.folder
        if version not in await asyncio.to_thread(versions, folder, model):
            await self.checkpoints.fetch(model, version, await self.checkpoints.sha256(model, version))

    async def _go_back(self, model: str, version: str) -> Loaded:
        try:
            digests = LiveVersion(version=BASE) if version == BASE else await self._shared(model, version)
            live = await self._set_live(model, digests, datetime.now(UTC))
        except NotSetUp as error:
            log.warning("version.served_here_alone", model=model, version=version, reason=str(error))
            return await self._reload_as(model, version)
        except (BusError, NatsError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"JetStream did not answer ({reason}); ask again") from error
        was_served = self._sync.serves(model) == version
        await self._sync.swap_to(model, live)
        loaded = self._manager.registry.current(model)
        return await self._manager.reload(model) if loaded is None or was_served else loaded

    async def _serve_here(self, model: str, version: str) -> Loaded:
        if version != BASE:
            try:
                await self.fetch(model, version)
            except (NotSetUp, BusError, NatsError, TimeoutError) as error:
                log.info("version.not_fetched", model=model, version=version, reason=str(error) or repr(error))
        return await self._reload_as(model, version)

    async def _reload_as(self, model: str, version: str) -> Loaded:
        loaded = await self._manager.reload(model, version)
        self._sync.forget_swap(model)
        return loaded

    async def _shared(self, model: str, version: str) -> LiveVersion:
        """A version with its digests, on this machine and if possible in the bucket."""
        await self.fetch(model, version)
        return await asyncio.to_thread(self._digests, model, version, await self._share(model, version))

    async def _share(self, model: str, version: str) -> str | None:
        """Publish a version's archive unless it is there -> its SHA-256; None if it cannot be published."""
        if sha256 := await self.checkpoints.sha256(model, version):
            return sha256
        try:
            return await self.checkpoints.publish(model, version)
        except (BadArchive, BucketFull) as error:
            log.warning("version.not_sent", model=model, version=version, reason=str(error))
            return None

    def _digests(self, model: str, version: str, archive_sha256: str | None = None) -> LiveVersion:
        folder = version_folder(self.checkpoints.folder, model, version)
        record = record_of(folder) if folder else None
        weights = record.weights_sha256 if record else None
        return LiveVersion(version=version, weights_sha256=weights, archive_sha256=archive_sha256)

    async def _set_live(
        self, model: str, version: LiveVersion, at: datetime, job: str | None = None, parent: str | None = None
    ) -> Live:
        """Set the live version. Raises Mismatch if it would replace another version than `parent`.

        If the version is live already, it becomes this job's at the time `at`: a worker that had the job before can
        then no longer undo it.
        """
        here = await asyncio.to_thread(lambda: self._digests(model, live_version(self.checkpoints.folder, model)))

        def changing(before: Live | None) -> Live:
            is_live = before is not None and before.version == version.version
            replaced = (before or here).version
            if not is_live and parent not in (None, replaced):
                raise Mismatch(f"{replaced} is live now, and it was trained from {parent}; train it anew")
            return before.replaced_by(version, at, job) if before else successor(here, version, at, job)

        live = await self.live.change(model, changing)
        assert live is not None
        return live

    def _start_undo(self, model: str, version: str, at: datetime) -> "asyncio.Task[None]":
        """A task that goes on until the server has taken it, whether or not it is awaited.

        Nothing is undone if somebody has set another version since, or taken this one over.
        """
        return self._background.spawn(
            self._undo(model, lambda live: (live.version, live.at) == (version, at)), f"undo.{model}"
        )

    async def _undo(self, model: str, is_meant: Callable[[Live], bool]) -> None:
        """Make the version before the live one live again, if the live one is meant."""
        await retry_while_down(
            lambda: self.live.change(model, lambda live: live.undone() if live and is_meant(live) else live)
        )

    def _canary(self, model: str, version: str) -> CanaryCheck:
        folder = version_folder(self.checkpoints.folder, model, version)
        record = record_of(folder) if folder else None
        if folder is None or record is None:
            raise FileNotFoundError(f"version {version} of model {model!r} holds no record of a training")
        texts, vectors = read_canary(folder / "report")
        min_cosine = min(MIN_COSINE, self._manager.catalogue.get(model).min_cosine)
        return CanaryCheck(model, record.weights_sha256[:12], texts, vectors, min_cosine)

    async def _check(self, canary: CanaryCheck) -> list[str]:
        """Wait until the workers have swapped, then run the canary check -> notes. Raises Mismatch."""
        workers, late = await self._wait_for_workers(canary.model, lambda served: served.startswith(canary.weights))
        await canary.run(self._nc, max(LEAST_REPLIES, 2 * len(workers)))
        if not late:
            return []
        return [f"{len(late)} of {len(workers)} workers still serve another version: {', '.join(sorted(late))}"]

    async def _wait_for_workers(self, model: str, has_swapped: Callable[[str], bool]) -> tuple[set[str], set[str]]:
        """Wait for all workers that serve a model -> the ids of all, and of those that have not swapped in time.

        has_swapped: whether a worker has, by the version that it serves.
        """
        until = asyncio.get_running_loop().time() + self._swap_timeout_s
        while True:
            served = await retry_while_down(functools.partial(self._served_versions, model))
            late = {worker for worker, version in served.items() if not has_swapped(version)}
            if not late or asyncio.get_running_loop().time() > until:
                return set(served), late
            await asyncio.sleep(POLL_S)

    async def _served_versions(self, model: str) -> dict[str, str]:
        """The version of a model that each worker serves, by worker id."""
        answers = await ask_workers(self._nc, "PING", ASK_S, ASK_STALL_S, WORKERS_INBOX)
        told = {str(answer.body["id"]): answer.body.get("metadata") or {} for answer in answers}
        return {worker: metadata[key] for worker, metadata in told.items() if (key := f"model.{model}") in metadata}
