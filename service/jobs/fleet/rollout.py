"""Has the whole fleet serve a version: sent to where every worker fetches it, named as the live one, proven, or undone.

Owns that order. How a worker comes to a version is its follower's (version_sync.py); here is only who says which.
"""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from nats.aio.client import Client
from nats.errors import Error as NatsError

from models.training.verify.canary import read_live_round
from models.weights.archive import BadArchive
from models.weights.versions import BASE, live_version, record_of, version_folder, versions
from subjects.client.discovery import ask_workers
from subjects.errors import Unavailable

from ...bus.errors import BusError
from ...endpoint.reply_subject import WORKERS_INBOX
from ...residency.manager import ModelManager
from ...residency.reservations import Loaded
from ...runtime.background import Background
from ..retry import retry_while_down
from ..store import NotSetUp
from .canary import MIN_COSINE, CanaryCheck, Mismatch
from .checkpoints import BucketFull, Checkpoints
from .live import MOST_SERVED, Live, LiveVersion, LiveVersions
from .version_sync import VersionSync

log = structlog.get_logger(__name__)

ASK_S, ASK_STALL_S = 2.0, 0.4
ASK_AGAIN_S = 0.5
UNDO_S = 10.0
LEAST_REPLIES = 4
"""Of a live round: which worker answers is the server's choice, so more are asked for than there are workers."""


@dataclass(eq=False)
class RolledBack(Exception):
    """A version was live for a moment and did not prove itself; the one before it is live again."""

    version: str
    reason: str

    def __str__(self) -> str:
        return f"version {self.version} was rolled back: {self.reason}"


class Rollout:
    """connect: opens another connection like nc, for transfers; checkpoints: the folder of all versions.

    patience_s: how long workers may take to come to a version. live: how the live versions are read and watched.
    first: see Follower.
    """

    def __init__(
        self,
        nc: Client,
        residency: ModelManager,
        connect: Callable[[], AbstractAsyncContextManager[Client]],
        checkpoints: Path,
        patience_s: float = 300.0,
        live: LiveVersions | None = None,
        first: Collection[str] | None = None,
    ) -> None:
        self._nc = nc
        self._residency = residency
        self._patience_s = patience_s
        self._background = Background()
        self.live = live or LiveVersions(nc)
        self.checkpoints = Checkpoints(connect, checkpoints)
        self.follower = VersionSync(self.live, self.checkpoints, residency, first)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Rollout"]:
        """On entry this worker has what is live in the fleet, where it is to be had; inside it follows what changes.

        Entered before models are loaded: they are then loaded in their live versions.
        """
        async with self.follower.running():
            try:
                yield self
            finally:
                await self._background.close()

    async def offer(self, model: str, version: str) -> list[str]:
        """Send a candidate of this machine to where every worker can fetch it -> what else is to be said.

        Raises NotSetUp, and OSError where it cannot be read.
        """
        if await self._sent(model, version):
            return []
        return ["the candidate could not be sent to the other workers; the log of the one that made it tells why"]

    async def go_live(self, model: str, version: str, job: str | None = None, parent: str | None = None) -> list[str]:
        """Have every worker serve a version of this machine, and prove it over the bus -> what else is to be said.

        parent: what has to be live until then, since it was compared with that; None: whatever is. Begun again after it
        was cut off, it goes on. Cancelled, the version before it is live again. Raises RolledBack,
        UnknownVersion, BadArchive, BucketFull, NotSetUp, and OSError where the version or what it must give back cannot
        be read.
        """
        live_round = await asyncio.to_thread(self._live_round, model, version)
        named = await asyncio.to_thread(self._local, model, version, await self.checkpoints.publish(model, version))
        at = datetime.now(UTC)
        try:
            await retry_while_down(lambda: self._name_live(model, named, at, job, parent))
            log.info("version.went_live", model=model, version=version, job=job)
            return await self._proven(live_round)
        except Mismatch as mismatch:
            log.error("version.rolled_back", model=model, version=version, job=job, reason=str(mismatch))
            await asyncio.shield(self._undoing(model, version, at))
            await self._lagging(model, lambda served: not served.startswith(live_round.weights))
            raise RolledBack(version, str(mismatch)) from mismatch
        except BaseException:
            await asyncio.wait({self._undoing(model, version, at)}, timeout=UNDO_S)
            raise

    async def abandon(self, model: str, job: str) -> None:
        """Go back from a version that a job named the live one and never proved; nothing where it named none."""

        def undoing(now: Live | None) -> Live | None:
            return _before(now) if now is not None and now.job == job else now

        with suppress(NotSetUp):
            await retry_while_down(lambda: self.live.change(model, undoing))

    async def go_back(self, model: str, version: str) -> Loaded:
        """Have a version, or `base`, be the live one in the whole fleet -> what then serves here; others follow.

        Where fine-tuning is not set up, this worker alone swaps. Raises UnknownModel, UnknownVersion and what loading
        raises.
        """
        self._residency.catalogue.get(model)
        return await self._background.shielded(self._go_back(model, version), f"go_back.{model}")

    async def serve_here(self, model: str, version: str) -> Loaded:
        """Serve a version on this worker alone, until another one goes live. Raises as go_back."""
        self._residency.catalogue.get(model)
        return await self._background.shielded(self._serve_here(model, version), f"serve_here.{model}")

    async def _go_back(self, model: str, version: str) -> Loaded:
        try:
            named = await self._named(model, version)
            live = await self._name_live(model, named, datetime.now(UTC))
        except NotSetUp as error:
            log.warning("version.served_here_alone", model=model, version=version, reason=str(error))
            return await self._reload_as(model, version)
        except (BusError, NatsError, TimeoutError) as error:
            reason = str(error) or type(error).__name__
            raise Unavailable(f"JetStream did not answer ({reason}); ask again") from error
        was_there = self.follower.serves(model) == version
        await self.follower.come_to(model, live)
        resident = self._residency.registry.current(model)
        return await self._residency.reload(model) if resident is None or was_there else resident

    async def _serve_here(self, model: str, version: str) -> Loaded:
        if version != BASE:
            try:
                await self.fetch(model, version)
            except (NotSetUp, BusError, NatsError, TimeoutError) as error:
                log.info("version.not_fetched", model=model, version=version, reason=str(error) or repr(error))
        return await self._reload_as(model, version)

    async def _reload_as(self, model: str, version: str) -> Loaded:
        loaded = await self._residency.reload(model, version)
        self.follower.strayed(model)
        return loaded

    async def fetch(self, model: str, version: str) -> None:
        """Have a version on this machine, if it is to be had. Raises UnknownVersion."""
        where = self.checkpoints.folder, model
        if version not in await asyncio.to_thread(versions, *where):
            sha256 = await self.checkpoints.sha256(model, version)
            await self.checkpoints.fetch(model, version, sha256)

    async def _named(self, model: str, version: str) -> LiveVersion:
        """A version as others may come to it: on this machine now, and in the bucket where it can be sent."""
        if version == BASE:
            return LiveVersion(version=BASE)
        await self.fetch(model, version)
        return await asyncio.to_thread(self._local, model, version, await self._sent(model, version))

    async def _sent(self, model: str, version: str) -> str | None:
        """The SHA-256 of its archive; None for a version that cannot be sent, and is this machine's alone."""
        if sha256 := await self.checkpoints.sha256(model, version):
            return sha256
        try:
            return await self.checkpoints.publish(model, version)
        except (BadArchive, BucketFull) as error:
            log.warning("version.not_sent", model=model, version=version, reason=str(error))
            return None

    def _local(self, model: str, version: str, archive_sha256: str | None = None) -> LiveVersion:
        folder = version_folder(self.checkpoints.folder, model, version)
        record = record_of(folder) if folder else None
        weights = record.weights_sha256 if record else None
        return LiveVersion(version=version, weights_sha256=weights, archive_sha256=archive_sha256)

    async def _name_live(
        self, model: str, named: LiveVersion, at: datetime, job: str | None = None, parent: str | None = None
    ) -> Live:
        """Name a version as the live one -> as it then is; where it is so already, what was live before it stays that.

        Raises Mismatch where it would take the place of another one than `parent`.

        A job that goes on with it makes it its own by the time `at`: the worker that had it can then not undo it.
        """
        here = await asyncio.to_thread(lambda: self._local(model, live_version(self.checkpoints.folder, model)))

        def naming(before: Live | None) -> Live:
            if before is not None and before.version == named.version:
                return before if job is None else before.model_copy(update={"at": at, "job": job})
            previous = _plain(before) if before else here
            if parent is not None and previous.version != parent:
                raise Mismatch(f"{previous.version} is live now, and it was trained from {parent}; train it anew")
            earlier = before.previous if before else None
            served = tuple(dict.fromkeys((named.version, previous.version, *(before.served if before else ()))))
            return Live(
                **named.model_dump(), previous=previous, earlier=earlier, at=at, job=job, served=served[:MOST_SERVED]
            )

        live = await self.live.change(model, naming)
        assert live is not None
        return live

    def _undoing(self, model: str, version: str, at: datetime) -> "asyncio.Task[None]":
        """Goes on, whether or not somebody waits for it, until the server has heard it."""
        return self._background.spawn(retry_while_down(lambda: self._undo(model, version, at)), f"undo.{model}")

    async def _undo(self, model: str, version: str, at: datetime) -> None:
        """Name the version before as the live one, unless somebody has named another meanwhile, or made it theirs."""

        def undoing(now: Live | None) -> Live | None:
            if now is None or (now.version, now.at) != (version, at):
                return now
            return _before(now)

        await self.live.change(model, undoing)

    def _live_round(self, model: str, version: str) -> CanaryCheck:
        folder = version_folder(self.checkpoints.folder, model, version)
        record = record_of(folder) if folder else None
        if folder is None or record is None:
            raise FileNotFoundError(f"version {version} of model {model!r} holds no record of a training")
        texts, vectors = read_live_round(folder / "report")
        min_cosine = min(MIN_COSINE, self._residency.catalogue.get(model).min_cosine)
        return CanaryCheck(model, record.weights_sha256[:12], texts, vectors, min_cosine)

    async def _proven(self, live_round: CanaryCheck) -> list[str]:
        """Wait until the workers have come to it, then ask. Raises Mismatch."""
        serving, lagging = await self._lagging(live_round.model, lambda served: served.startswith(live_round.weights))
        await live_round.ask(self._nc, max(LEAST_REPLIES, 2 * len(serving)))
        if not lagging:
            return []
        return [f"{len(lagging)} of {len(serving)} workers still serve another version: {', '.join(sorted(lagging))}"]

    async def _lagging(self, model: str, done: Callable[[str], bool]) -> tuple[set[str], set[str]]:
        """Wait until all workers that serve a model are done -> the ids of all, and of those that are not done in time.

        done: whether a worker that names this version is.
        """
        until = asyncio.get_running_loop().time() + self._patience_s
        while True:
            served = await retry_while_down(functools.partial(self._served, model))
            lagging = {worker for worker, version in served.items() if not done(version)}
            if not lagging or asyncio.get_running_loop().time() > until:
                return set(served), lagging
            await asyncio.sleep(ASK_AGAIN_S)

    async def _served(self, model: str) -> dict[str, str]:
        """By worker, the version of a model that takes requests there."""
        answers = await ask_workers(self._nc, "PING", ASK_S, ASK_STALL_S, WORKERS_INBOX)
        told = {str(answer.body["id"]): answer.body.get("metadata") or {} for answer in answers}
        return {worker: metadata[key] for worker, metadata in told.items() if (key := f"model.{model}") in metadata}


def _before(live: Live) -> Live:
    """What was live before it, as it was then."""
    before = live.previous or LiveVersion(version=BASE)
    served = tuple(version for version in live.served if version != live.version)
    return Live(**before.model_dump(), previous=live.earlier, at=datetime.now(UTC), served=served)


def _plain(live: Live) -> LiveVersion:
    return LiveVersion.model_validate(live.model_dump(include=set(LiveVersion.model_fields)))
