"""Fine-tuned versions in the object bucket ml_checkpoints: sent from one worker's disk, fetched to the others'.

Owns the objects `<model>/<version>`, each an archive of a version's folder. Knows nothing of which version is live.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.api import ObjectInfo
from nats.js.errors import APIError, NotFoundError, ObjectNotFoundError, ServiceUnavailableError
from nats.js.object_store import ObjectStore

from models.errors import ModelError, UnknownVersion
from models.weights.archive import pack, unpack
from models.weights.durable import temporary_name
from models.weights.versions import version_folder, versions
from subjects import names

from ..pruning import Archived
from ..store import NotSetUp

log = structlog.get_logger(__name__)

STREAM = f"OBJ_{names.CHECKPOINTS_BUCKET}"
_CHUNKS = f"$O.{names.CHECKPOINTS_BUCKET}.C."
_DIGEST = "SHA-256="
_STORE_FULL = 10077
PATIENCE_S = 60.0
SLOWEST_BYTES_PER_S = 2 * 2**20
"""A transfer may take PATIENCE_S and as long as it takes at this rate; then the server is as good as away."""
ABANDONED_AFTER = timedelta(hours=6)
"""Longer than any transfer takes: pieces of an object without a name are then a dead worker's."""


@dataclass(eq=False)
class BucketFull(ModelError):
    """There is no room for another version in the object bucket."""

    model: str
    version: str

    def __str__(self) -> str:
        return (
            f"version {self.version} of model {self.model!r} does not fit into the object bucket "
            f"{names.CHECKPOINTS_BUCKET}: keep fewer versions (finetune.keep_versions, finetune.keep_days)"
        )


class Checkpoints:
    """connect: opens a connection for a transfer, so that requests never wait behind one. folder: of all versions."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Client]], folder: Path) -> None:
        self._connect = connect
        self.folder = folder

    async def publish(self, model: str, version: str) -> str:
        """Send a version of this machine, where it is not there already -> the SHA-256 of its archive, in hexadecimal.

        Its name appears once all of it is there. Raises UnknownVersion, BadArchive, BucketFull, NotSetUp, OSError.
        """
        folder = version_folder(self.folder, model, version)
        if folder is None:
            raise UnknownVersion(model, version, versions(self.folder, model))
        archive = temporary_name(self.folder / model / f"{version}.tar")
        try:
            sha256 = await asyncio.to_thread(pack, folder, archive)
            async with self._bucket() as (nc, bucket):
                await _clear_abandoned(nc, bucket)
                if await _sha256(bucket, _name(model, version)) != sha256:
                    await _put(bucket, archive, model, version)
                    log.info("checkpoint.published", model=model, version=version)
        finally:
            archive.unlink(missing_ok=True)
        return sha256

    async def fetch(self, model: str, version: str, sha256: str | None) -> Path:
        """Get a version that is not on this machine -> its folder, which appears once it is whole and proven.

        sha256: what its archive must have; None: there is none to be had. Raises UnknownVersion, BadArchive, NotSetUp,
        OSError.
        """
        folder = self.folder / model / version
        if version in await asyncio.to_thread(versions, self.folder, model):
            return folder
        if sha256 is None:
            raise UnknownVersion(model, version, versions(self.folder, model))
        archive = temporary_name(self.folder / model / f"{version}.tar")
        try:
            await asyncio.to_thread(archive.parent.mkdir, parents=True, exist_ok=True)
            await self._get(model, version, archive)
            await asyncio.to_thread(unpack, archive, folder, sha256)
        except FileExistsError:  # another worker with the same data directory was faster
            return folder
        finally:
            archive.unlink(missing_ok=True)
        log.info("checkpoint.fetched", model=model, version=version)
        return folder

    async def sha256(self, model: str, version: str) -> str | None:
        """Of the archive of a version, in hexadecimal; None where it was not sent. Raises NotSetUp."""
        async with self._bucket() as (_, bucket):
            return await _sha256(bucket, _name(model, version))

    async def list(self) -> Sequence[Archived]:
        """All versions that were sent. Raises NotSetUp."""
        async with self._bucket() as (_, bucket):
            return [_archived(info) for info in await _objects(bucket) if "/" in info.name]

    async def remove(self, model: str, version: str) -> None:
        """Let a version's archive go; nothing there is no error. Raises NotSetUp."""
        async with self._bucket() as (_, bucket):
            with suppress(ObjectNotFoundError):
                await bucket.delete(_name(model, version))

    async def _get(self, model: str, version: str, archive: Path) -> None:
        async with self._bucket() as (_, bucket):
            try:
                info = await bucket.get_info(_name(model, version))
                with await asyncio.to_thread(archive.open, "wb") as file:
                    async with asyncio.timeout(_patience_s(info.size or 0)):
                        await bucket.get(_name(model, version), writeinto=file)
            except NotFoundError:
                raise UnknownVersion(model, version, versions(self.folder, model)) from None

    @asynccontextmanager
    async def _bucket(self) -> AsyncIterator[tuple[Client, ObjectStore]]:
        """With a connection of its own: closing it also ends what nats-py leaves behind of a get that is cut off."""
        async with self._connect() as nc:
            try:
                bucket = await nc.jetstream().object_store(names.CHECKPOINTS_BUCKET)
            except (NotFoundError, ServiceUnavailableError, NoRespondersError):
                raise NotSetUp from None
            yield nc, bucket


async def _put(bucket: ObjectStore, archive: Path, model: str, version: str) -> None:
    size_bytes = (await asyncio.to_thread(archive.stat)).st_size
    try:
        async with asyncio.timeout(_patience_s(size_bytes)):
            with await asyncio.to_thread(archive.open, "rb") as file:
                await bucket.put(_name(model, version), file)
    except APIError as error:
        if error.err_code == _STORE_FULL:
            raise BucketFull(model, version) from error
        raise


async def _clear_abandoned(nc: Client, bucket: ObjectStore) -> None:
    """Remove the pieces of objects that never got their name, as a worker leaves them that is killed."""
    js = nc.jetstream()
    state: Any = (await js.stream_info(STREAM, subjects_filter=f"{_CHUNKS}>")).state
    named = {_CHUNKS + str(info.nuid) for info in await _objects(bucket)}
    for subject in set(state.subjects or {}) - named:
        with suppress(NotFoundError):  # another worker clears the same
            sent_at = (await js.get_last_msg(STREAM, subject)).time
            if sent_at is not None and datetime.now(UTC) - sent_at > ABANDONED_AFTER:
                await js.purge_stream(STREAM, subject=subject)
                log.info("checkpoint.abandoned_cleared", subject=subject)


async def _objects(bucket: ObjectStore) -> Sequence[ObjectInfo]:
    try:
        async with asyncio.timeout(PATIENCE_S):
            return [info for info in await bucket.list(ignore_deletes=True) if not info.deleted]
    except NotFoundError:
        return []


async def _sha256(bucket: ObjectStore, name: str) -> str | None:
    try:
        digest = (await bucket.get_info(name)).digest or ""
    except ObjectNotFoundError:
        return None
    return base64.urlsafe_b64decode(digest.removeprefix(_DIGEST)).hex()


def _archived(info: ObjectInfo) -> Archived:
    model, _, version = info.name.partition("/")
    return Archived(model, version, datetime.fromisoformat(str(info.mtime)).astimezone(UTC))


def _patience_s(size_bytes: int) -> float:
    return PATIENCE_S + size_bytes / SLOWEST_BYTES_PER_S


def _name(model: str, version: str) -> str:
    return f"{model}/{version}"
