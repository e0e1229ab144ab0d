"""Reads objects of an object bucket that callers may have written: no links are followed, sizes and times are bounded.

Each chunk is one request, so that nothing stays open.
"""

import asyncio
import base64
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, BinaryIO

import orjson
from nats.aio.client import Client
from pydantic import BaseModel, Field, StringConstraints

from models.training.data.dataset import MAX_GIVEN_BYTES
from subjects import names
from subjects.errors import InvalidField, NotFound, TooLarge, Unavailable
from subjects.uploads import CHUNK_BYTES

from ..bus.jetstream import api_subject
from .bucket import NotSetUp

MAX_CHUNKS = 2**30 // CHUNK_BYTES
"""Chunks of one object at most: 1 GiB in chunks of CHUNK_BYTES."""
MAX_META_BYTES = 65_536
REQUEST_S = 5.0
COPY_S, SLOWEST_BYTES_PER_S = 30.0, 5_000_000
"""A copy may take COPY_S, and beyond that its size at this rate."""
_NO_MESSAGE, _NO_STREAM = 10037, 10059


class _Options(BaseModel):
    link: Any = None


class ObjectMeta(BaseModel):
    """The fields of an object's metadata that are read here."""

    nuid: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64})?$")]
    size: int = Field(0, ge=0)
    chunks: int = Field(0, ge=0)
    digest: str = ""
    deleted: bool = False
    options: _Options | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one bucket. bucket: its name."""

    nc: Client
    bucket: str

    async def meta(self, name: str) -> ObjectMeta:
        """An object's metadata. Raises NotFound, NotSetUp, Unavailable, what an absent server raises, and InvalidField
        or TooLarge if the object must not be read.
        """
        found = await self.message(last_by_subj=self.meta_subject(name))
        meta = None if found is None else _read_meta(name, base64.b64decode(found.get("data", "")))
        if meta is None or meta.deleted:
            put = f"nats object put {self.bucket} FILE --name {name}"
            raise NotFound(
                f"there is no object {name!r} in the bucket {self.bucket}; send it on {names.FINETUNE_UPLOAD}, "
                f"or put it there as admin: {put}"
            )
        if meta.options and meta.options.link is not None:
            raise _bad(name, "is a link, and links are not followed; put the data itself there")
        if not meta.size:
            raise _bad(name, "is empty; give it a JSON line for each pair")
        if meta.size > MAX_GIVEN_BYTES or meta.chunks > MAX_CHUNKS:
            raise TooLarge(
                f"field 'object': object {name!r} has {meta.size} bytes in {meta.chunks} chunks; "
                f"{MAX_GIVEN_BYTES} in {MAX_CHUNKS} are the most"
            )
        return meta

    async def copy(self, name: str, file: BinaryIO) -> None:
        """Write an object's bytes to a file, chunk by chunk.

        Raises what `meta` raises, and InvalidField if bytes are missing, differ from the digest, or take too long.
        """
        meta = await self.meta(name)
        timeout_s = COPY_S + meta.size / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(timeout_s) as timer:
                digest = await self._copy(name, meta, file)
        except TimeoutError:
            if timer.expired():
                raise _bad(name, f"did not come within {timeout_s:.0f} s") from None
            raise
        if meta.digest.rstrip("=") != f"SHA-256={digest}".rstrip("="):
            raise _bad(name, "is spoilt: its SHA-256 is not the one in its metadata; put it there again")

    async def _copy(self, name: str, meta: ObjectMeta, file: BinaryIO) -> str:
        """-> the SHA-256 of what was written, encoded as in metadata."""
        digest, size, at = sha256(), 0, 0

        def take(message: dict[str, Any]) -> int:
            data = base64.b64decode(message.get("data", ""))
            digest.update(data)
            return file.write(data)

        for number in range(1, meta.chunks + 1):
            message = await self.message(seq=at + 1, next_by_subj=self.chunk_subject(meta.nuid))
            if message is None:
                raise _bad(name, f"is not whole: chunk {number} of {meta.chunks} is missing; put it there again")
            at = message["seq"]
            size += await asyncio.to_thread(take, message)
            if size > meta.size:
                break
        if size != meta.size:
            raise _bad(name, f"has not the {meta.size} bytes that its metadata tell of; put it there again")
        return base64.urlsafe_b64encode(digest.digest()).decode()

    @property
    def stream(self) -> str:
        """The bucket's stream."""
        return f"OBJ_{self.bucket}"

    def chunk_subject(self, nuid: str) -> str:
        """The subject of an object's chunks."""
        return f"$O.{self.bucket}.C.{nuid}"

    def meta_subject(self, name: str) -> str:
        """The subject of an object's metadata."""
        return f"$O.{self.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"

    async def message(self, **which: Any) -> dict[str, Any] | None:
        """One message of the bucket's stream, without its headers; None if there is none.

        which: the fields of JetStream's STREAM.MSG.GET. Raises NotSetUp, Unavailable, and what an absent server raises.
        """
        subject = api_subject(self.nc, f"STREAM.MSG.GET.{self.stream}")
        reply = await self.nc.request(subject, orjson.dumps(which), timeout=REQUEST_S)
        answer = await asyncio.to_thread(orjson.loads, reply.data)
        error = answer.get("error", {})
        if error.get("err_code") == _NO_STREAM:
            raise NotSetUp
        if error and error.get("err_code") != _NO_MESSAGE:
            raise Unavailable(f"the bucket {self.bucket} gave no answer ({error.get('description')}); ask again later")
        message: dict[str, Any] | None = answer.get("message")
        return message


def _read_meta(name: str, content: bytes) -> ObjectMeta:
    try:
        if len(content) > MAX_META_BYTES:
            raise ValueError
        return ObjectMeta.model_validate_json(content)
    except ValueError:  # a ValidationError is one
        raise _bad(name, "has metadata that cannot be read; put it there again") from None


def _bad(name: str, fault: str) -> InvalidField:
    return InvalidField(f"field 'object': object {name!r} {fault}")
