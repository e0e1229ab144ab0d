"""Which version of each model is live in the whole fleet: the keys `live.<model>` of the bucket ml_jobs.

Owns how they are read, changed by compare-and-set, and watched. Knows nothing of weights or of what a worker does.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

import structlog
from nats.aio.client import Client
from nats.js.errors import KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ..entries import entries
from ..retry import TROUBLE
from ..setup import jobs_bucket
from ..store import NotSetUp

log = structlog.get_logger(__name__)

_PREFIX = "live."
_TRIES = 50
MOST_SERVED = 100
"""How many of the versions that were live are remembered."""


class LiveVersion(BaseModel):
    """A version, and what proves it: weights_sha256 as its record has it, archive_sha256 of its object's bytes.

    Both are None for `base`, which every worker has by itself.
    """

    model_config = ConfigDict(frozen=True)

    version: str
    weights_sha256: str | None = None
    archive_sha256: str | None = None


class Live(LiveVersion):
    """The live version of a model. previous: what to go back to; earlier: what that one went back to when it was live.

    job: the one that made it live, if one did. served: the names of all that were live, this one first.
    """

    previous: LiveVersion | None = None
    earlier: LiveVersion | None = None
    served: tuple[str, ...] = ()
    at: AwareDatetime
    job: str | None = None


class LiveVersions:
    """tick_s: how soon a watch sees that the connection was lost; renew_s: how long it trusts itself otherwise.

    setup_s: how often it looks whether the bucket has been made by now.
    """

    def __init__(self, nc: Client, tick_s: float = 5.0, renew_s: float = 300.0, setup_s: float = 30.0) -> None:
        self._nc = nc
        self._tick_s = tick_s
        self._renew_s = renew_s
        self._setup_s = setup_s

    async def get(self, model: str) -> Live | None:
        """The live version; None where none was ever set. Raises NotSetUp."""
        entry = await _entry(await jobs_bucket(self._nc), model)
        return _read(entry) if entry else None

    async def change(self, model: str, changing: Callable[[Live | None], Live | None]) -> Live | None:
        """Set what a function makes of the live version -> what then is live.

        The function is called again where somebody else was faster; nothing is written where it changes nothing.
        Raises NotSetUp.
        """
        bucket = await jobs_bucket(self._nc)
        for _ in range(_TRIES):
            entry = await _entry(bucket, model)
            before = _read(entry) if entry else None
            after = changing(before)
            if after is None or after == before:
                return before
            value = after.model_dump_json().encode()
            try:
                if entry is None:
                    await bucket.create(_PREFIX + model, value)
                else:
                    await bucket.update(_PREFIX + model, value, last=entry.revision)
            except KeyWrongLastSequenceError:
                continue
            return after
        raise RuntimeError(f"the live version of {model!r} was changed by others {_TRIES} times in a row")

    async def all(self) -> dict[str, Live]:
        """The live version of every model that has one. Raises NotSetUp."""
        found = await entries(self._nc.jetstream(), await jobs_bucket(self._nc), _PREFIX)
        return {_model(entry): live for entry in found if (live := _read(entry))}

    async def watch(self) -> AsyncGenerator[tuple[str, Live], None]:
        """Every live version as it is now, and each as it changes, without end; some come more than once.

        A watch may die without a word when the server restarts: it is made anew after each reconnect, and now and then.
        """
        told = False
        while True:
            try:
                async with aclosing(self._watch_once()) as changes:
                    async for change in changes:
                        told = False
                        yield change
            except NotSetUp as error:
                if not told:
                    log.info("live_versions.not_set_up", reason=str(error))
                told = True
                await asyncio.sleep(self._setup_s)
            except TROUBLE as error:
                if not told:
                    log.warning("live_versions.server_away", error=repr(error))
                told = True
                await asyncio.sleep(self._tick_s)

    async def _watch_once(self) -> AsyncGenerator[tuple[str, Live], None]:
        connection = self._nc.stats["reconnects"]
        watcher = await (await jobs_bucket(self._nc)).watch(f"{_PREFIX}>")
        until = asyncio.get_running_loop().time() + self._renew_s
        try:
            while self._nc.stats["reconnects"] == connection and asyncio.get_running_loop().time() < until:
                try:
                    entry = await watcher.updates(timeout=self._tick_s)  # type: ignore[no-untyped-call]
                except TimeoutError:
                    continue
                if entry is not None and (live := _read(entry)):
                    yield _model(entry), live
        finally:
            with suppress(*TROUBLE):
                await watcher.stop()  # type: ignore[no-untyped-call]


async def _entry(bucket: KeyValue, model: str) -> KeyValue.Entry | None:
    try:
        return await bucket.get(_PREFIX + model)
    except KeyNotFoundError:
        return None


def _model(entry: KeyValue.Entry) -> str:
    return str(entry.key).removeprefix(_PREFIX)


def _read(entry: KeyValue.Entry) -> Live | None:
    """None for one that was deleted, or that is not ours to understand."""
    if entry.operation in (KV_DEL, KV_PURGE):
        return None
    try:
        return Live.model_validate_json(entry.value or b"")
    except ValidationError as error:
        log.warning("live_version.unreadable", key=entry.key, faults=error.error_count())
        return None
