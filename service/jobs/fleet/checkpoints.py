"""Fine-tuned versions in the object bucket ml_checkpoints: objects `<model>/<version>`, archives of version folders."""

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
from nats.js.api import ObjectInfo
from nats.js.errors import APIError, NotFoundError, ObjectNotFoundError
from nats.js.object_store import ObjectStore

from models.errors import ModelError, UnknownVersion
from models.weights.archive import pack, unpack
from models.weights.durable import temporary_name
from models.weights.versions import version_folder, versions
from subjects import names

from ..bucket import requiring_set_up

log = structlog.get_logger(__name__)

STREAM = f"OBJ_{names.CHECKPOINTS_BUCKET}"
_CHUNKS = f"$O.{names.CHECKPOINTS_BUCKET}.C."
_DIGEST = "SHA-256="
_STORE_FULL = 10077
TRANSFER_S = 60.0
SLOWEST_BYTES_PER_S = 2 * 2**20
"""A transfer may take TRANSFER_S plus its size at this rate."""
ABANDONED_AFTER = timedelta(hours=6)
"""Longer than any transfer takes: chunks without metadata are then leftovers of a killed worker."""


class BucketFull(ModelError):
    """The object bucket cannot take another version."""

    model: str
    version: str
    message = (
        f"version {{version}} of model {{model!r}} does not fit into the object bucket {names.CHECKPOINTS_BUCKET}: "
        "keep fewer versions (finetune.keep_versions, finetune.keep_days)"
    )


@dataclass(frozen=True, slots=True)
class Archived:
    """A version in the object bucket. at: when it was put there."""

    model: str
    version: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """connect: opens a connection for a transfer, so that requests never wait for one. folder: of all versions."""

    connect: Callable[[], AbstractAsyncContextManager[Client]]
    folder: Path

    async def publish(self, model: str, version: str) -> str:
        """Send a version of this machine unless it is in the bucket -> the SHA-256 of its archive, in hexadecimal.

        Its name appears once the archive is complete. Raises UnknownVersion, BadArchive, BucketFull, NotSetUp, OSError.
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
        """Fetch a version unless it is on this machine -> its folder, which appears once it is complete and verified.

        sha256: of its archive; None if it has none. Raises UnknownVersion, BadArchive, NotSetUp, OSError.
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
        """Of a version's archive, in hexadecimal; None if it is not in the bucket. Raises NotSetUp."""
        async with self._bucket() as (_, bucket):
            return await _sha256(bucket, _name(model, version))

    async def list(self) -> Sequence[Archived]:
        """All versions in the bucket. Raises NotSetUp."""
        async with self._bucket() as (_, bucket):
            return [_archived(info) for info in await _objects(bucket) if "/" in info.name]

    async def remove(self, model: str, version: str) -> None:
        """Remove a version's archive, if there is one. Raises NotSetUp."""
        async with self._bucket() as (_, bucket):
            with suppress(ObjectNotFoundError):
                await bucket.delete(_name(model, version))

    async def _get(self, model: str, version: str, archive: Path) -> None:
        async with self._bucket() as (_, bucket):
            try:
                info = await bucket.get_info(_name(model, version))
                with await asyncio.to_thread(archive.open, "wb") as file:
                    async with asyncio.timeout(_transfer_s(info.size or 0)):
                        await bucket.get(_name(model, version), writeinto=file)
            except NotFoundError:
                raise UnknownVersion(model, version, versions(self.folder, model)) from None

    @asynccontextmanager
    async def _bucket(self) -> AsyncIterator[tuple[Client, ObjectStore]]:
        """On its own connection: closing it also ends what nats-py leaves running after a cancelled get."""
        async with self.connect() as nc:
            with requiring_set_up():
                bucket = await nc.jetstream().object_store(names.CHECKPOINTS_BUCKET)
            yield nc, bucket


async def _put(bucket: ObjectStore, archive: Path, model: str, version: str) -> None:
    size_bytes = (await asyncio.to_thread(archive.stat)).st_size
    try:
        async with asyncio.timeout(_transfer_s(size_bytes)):
            with await asyncio.to_thread(archive.open, "rb") as file:
                await bucket.put(_name(model, version), file)
    except APIError as error:
        if error.err_code == _STORE_FULL:
            raise BucketFull(model, version) from error
        raise


async def _clear_abandoned(nc: Client, bucket: ObjectStore) -> None:
    """Remove chunks of objects that never got their metadata, which a killed worker leaves."""
    js = nc.jetstream()
    state: Any = (await js.stream_info(STREAM, subjects_filter=f"{_CHUNKS}>")).state
    named = {_CHUNKS + str(info.nuid) for info in await _objects(bucket)}
    for subject in set(state.subjects or {}) - named:
        with suppress(NotFoundError):  # another worker was faster
            sent_at = (await js.get_last_msg(STREAM, subject)).time
            if sent_at is not None and datetime.now(UTC) - sent_at > ABANDONED_AFTER:
                await js.purge_stream(STREAM, subject=subject)
                log.info("checkpoint.abandoned_cleared", subject=subject)


async def _objects(bucket: ObjectStore) -> Sequence[ObjectInfo]:
    try:
        async with asyncio.timeout(TRANSFER_S):
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


def _transfer_s(size_bytes: int) -> float:
    return TRANSFER_S + size_bytes / SLOWEST_BYTES_PER_S


def _name(model: str, version: str) -> str:
    return f"{model}/{version}"
