"""A worker follows the fleet's live versions: it fetches a version, makes it the live one on disk, and swaps."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from nats.errors import Error as NatsError

from models.errors import ModelError
from models.weights.versions import BASE, live_version, make_live, previous_version
from subjects.errors import MLError

from ...bus.errors import BusError
from ...residency.manager import ModelManager
from ...runtime.background import background_task
from ..bucket import NotSetUp
from ..retry import TROUBLE
from .checkpoints import Checkpoints
from .live import Live, LiveVersions

log = structlog.get_logger(__name__)

RETRY_S, LONGEST_RETRY_S = 60.0, 3600.0
FORESEEN = (ModelError, MLError, BusError, NatsError, OSError, TimeoutError)


@dataclass(slots=True, eq=False)
class VersionSync:
    """Keeps this worker at the fleet's live versions; `running` follows them.

    first: the models whose versions the start waits for, None for all; the rest follow while the worker serves.

    retry_s: the pause after a failure; it doubles with each further failure, up to an hour.
    """

    live: LiveVersions
    checkpoints: Checkpoints
    manager: ModelManager
    first: Collection[str] | None = None
    retry_s: float = RETRY_S
    _wanted: dict[str, Live] = field(default_factory=dict)
    _behind: set[str] = field(default_factory=set)
    _failures: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _serves: dict[str, str] = field(default_factory=dict)
    _locks: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    @asynccontextmanager
    async def running(self) -> AsyncIterator["VersionSync"]:
        """On entry the fleet's live versions are taken over if they can be had; inside, changes are followed."""
        await self._follow_at_start()
        async with (
            background_task(lambda closing: self._listen(), "live_versions.watch"),
            background_task(lambda closing: self._follow_changes(), "live_versions.follow"),
        ):
            yield self

    def serves(self, model: str) -> str | None:
        """The version that this worker has swapped to; None if it has not since its start, or was asked for another."""
        return self._serves.get(model)

    def forget_swap(self, model: str) -> None:
        """Note that this worker was asked to serve another version than the live one."""
        self._serves.pop(model, None)

    async def swap_to(self, model: str, live: Live) -> None:
        """Make a version live on this machine and serve it. After a failure everything is as before.

        Raises UnknownVersion, BadArchive, what loading raises, NotSetUp, OSError, and what an absent server raises.
        """
        async with self._locks[model]:
            if self._serves.get(model) == live.version:
                return
            if live.version != BASE:
                await self.checkpoints.fetch(model, live.version, live.archive_sha256)
            where = self.checkpoints.folder, model
            before = await asyncio.to_thread(lambda: (live_version(*where), previous_version(*where)))
            previous = live.previous.version if live.previous else None
            await asyncio.to_thread(make_live, *where, live.version, previous)
            try:
                swapped = await self.manager.refresh(model)
            except Exception:
                await asyncio.to_thread(make_live, *where, *before)
                raise
            self._serves[model] = live.version
        log.info("version.came_live", model=model, version=live.version, swapped=swapped is not None)

    async def _follow_at_start(self) -> None:
        try:
            found = await self.live.all()
        except NotSetUp:
            return  # the watch logs it
        except TROUBLE as error:
            log.warning("live_versions.server_away", error=repr(error))
            return
        for model, live in found.items():
            self._want(model, live)
        await self._swap_all(self.first)
        if self._behind and not self._failures:
            self._changed.set()

    async def _listen(self) -> None:
        async for model, live in self.live.watch():
            self._want(model, live)

    def _want(self, model: str, live: Live) -> None:
        """Note that a model is to swap to this version; the same one reported again changes nothing."""
        if model in self.manager.catalogue.specs and live != self._wanted.get(model):
            self._wanted[model] = live
            self._behind.add(model)
            self._failures = 0
            self._changed.set()

    async def _follow_changes(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._changed.wait()
            except TimeoutError:
                log.info("version.tried_again", models=sorted(self._behind))
            await self._swap_all()

    def _wait_s(self) -> float | None:
        """Seconds until the next try, longer after each failure; None while nothing is behind."""
        return min(LONGEST_RETRY_S, self.retry_s * 2.0 ** (self._failures - 1)) if self._behind else None

    async def _swap_all(self, only: Collection[str] | None = None) -> None:
        """Swap to every wanted version; a model that fails stays behind. A change meanwhile is seen in the next run."""
        self._changed.clear()
        failed = False
        for model in sorted(self._behind if only is None else self._behind.intersection(only)):
            live = self._wanted[model]
            try:
                await self.swap_to(model, live)
            except FORESEEN as error:
                failed = True
                log.warning("version.not_followed", model=model, version=live.version, reason=str(error) or repr(error))
            except Exception:
                failed = True
                log.exception("version.follow_broke", model=model, version=live.version)
            else:
                if self._wanted[model] == live:
                    self._behind.discard(model)
        if failed:
            self._failures = min(self._failures + 1, 30)
