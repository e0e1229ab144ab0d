"""Which version of each model is live in the whole fleet: the keys `live.<model>` of the bucket ml_jobs."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog
from nats.aio.client import Client
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from models.weights.versions import BASE

from ..bucket import NotSetUp, compare_and_set, jobs_bucket, read_entries, read_entry
from ..retry import TROUBLE

log = structlog.get_logger(__name__)

_PREFIX = "live."
MOST_SERVED = 100
"""How many earlier live versions are remembered."""


class LiveVersion(BaseModel):
    """A version and its digests: weights_sha256 as in its training record, archive_sha256 of its object's bytes.

    Both are None for `base`, which every worker has.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    weights_sha256: str | None = None
    archive_sha256: str | None = None


class Live(LiveVersion):
    """The live version of a model.

    previous: the version to go back to. earlier: what `previous` in turn would go back to. job: the job that made this
    version live, if one did. served: all versions that were ever live, this one first.
    """

    previous: LiveVersion | None = None
    earlier: LiveVersion | None = None
    served: tuple[str, ...] = ()
    at: AwareDatetime
    job: str | None = None

    def replaced_by(self, version: LiveVersion, at: datetime, job: str | None) -> "Live":
        """The state after another version has gone live. The same version only changes hands, to another job."""
        if version.version == self.version:
            return self if job is None else self.model_copy(update={"at": at, "job": job})
        return successor(self.plain(), version, at, job, self.previous, self.served)

    def undone(self) -> "Live":
        """The state before this version went live."""
        before = self.previous or LiveVersion(version=BASE)
        served = tuple(version for version in self.served if version != self.version)
        return Live(**before.model_dump(), previous=self.earlier, at=datetime.now(UTC), served=served)

    def plain(self) -> LiveVersion:
        """The version and its digests alone."""
        return LiveVersion.model_validate(self.model_dump(include=set(LiveVersion.model_fields)))


def successor(
    previous: LiveVersion,
    version: LiveVersion,
    at: datetime,
    job: str | None,
    earlier: LiveVersion | None = None,
    served: tuple[str, ...] = (),
) -> Live:
    """The state in which a version is live and `previous` was before it."""
    names = tuple(dict.fromkeys((version.version, previous.version, *served)))
    return Live(**version.model_dump(), previous=previous, earlier=earlier, at=at, job=job, served=names[:MOST_SERVED])


@dataclass(frozen=True, slots=True)
class LiveVersions:
    """Reads, changes and watches the live versions.

    tick_s: how soon a watch notices a lost connection. renew_s: how long a watch is used before it is renewed anyway.
    setup_s: how often a missing bucket is looked for.
    """

    nc: Client
    tick_s: float = 5.0
    renew_s: float = 300.0
    setup_s: float = 30.0

    async def get(self, model: str) -> Live | None:
        """The live version; None if none was ever set. Raises NotSetUp."""
        return _read(await read_entry(await jobs_bucket(self.nc), _PREFIX + model))

    async def change(self, model: str, changing: Callable[[Live | None], Live | None]) -> Live | None:
        """Replace the live version by what `changing` makes of it -> the live version then.

        changing: is called again if somebody else changed it in between; nothing is written if it returns None or the
        same. Raises NotSetUp, and what `changing` raises.
        """
        live: Live | None = None

        def changed(entry: KeyValue.Entry | None) -> bytes | None:
            nonlocal live
            before = live = _read(entry)
            after = changing(before)
            if after is None or after == before:
                return None
            live = after
            return after.model_dump_json().encode()

        await compare_and_set(await jobs_bucket(self.nc), _PREFIX + model, changed)
        return live

    async def all(self) -> dict[str, Live]:
        """The live version of every model that has one. Raises NotSetUp."""
        found = await read_entries(self.nc.jetstream(), await jobs_bucket(self.nc), _PREFIX)
        return {_model(entry): live for entry in found if (live := _read(entry))}

    async def watch(self) -> AsyncGenerator[tuple[str, Live], None]:
        """Every live version, then each change, without end; some are reported twice.

        A watch can die silently when the server restarts, so it is renewed after each reconnect and from time to time.
        """
        warned = False
        while True:
            try:
                async with aclosing(self._watch_once()) as changes:
                    async for change in changes:
                        warned = False
                        yield change
            except NotSetUp as error:
                if not warned:
                    log.info("live_versions.not_set_up", reason=str(error))
                warned = True
                await asyncio.sleep(self.setup_s)
            except TROUBLE as error:
                if not warned:
                    log.warning("live_versions.server_away", error=repr(error))
                warned = True
                await asyncio.sleep(self.tick_s)

    async def _watch_once(self) -> AsyncGenerator[tuple[str, Live], None]:
        connection = self.nc.stats["reconnects"]
        watcher = await (await jobs_bucket(self.nc)).watch(f"{_PREFIX}>")
        until = asyncio.get_running_loop().time() + self.renew_s
        try:
            while self.nc.stats["reconnects"] == connection and asyncio.get_running_loop().time() < until:
                try:
                    entry = await watcher.updates(timeout=self.tick_s)  # type: ignore[no-untyped-call]
                except TimeoutError:
                    continue
                if live := _read(entry):
                    yield _model(entry), live
        finally:
            with suppress(*TROUBLE):
                await watcher.stop()  # type: ignore[no-untyped-call]


def _model(entry: KeyValue.Entry) -> str:
    return str(entry.key).removeprefix(_PREFIX)


def _read(entry: KeyValue.Entry | None) -> Live | None:
    """None for no entry, a deleted one, and one that cannot be read."""
    if entry is None or entry.operation in (KV_DEL, KV_PURGE):
        return None
    try:
        return Live.model_validate_json(entry.value or b"")
    except ValidationError as error:
        log.warning("live_version.unreadable", key=entry.key, faults=error.error_count())
        return None
