"""What lies in an object bucket for training, read without believing a word of it: no link is followed, all is bounded.

Owns the reading: one request a chunk, each answered at once, and nothing left open. Knows nothing of what is in them.
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
from subjects.errors import InvalidField, NotFound, TooLarge, Unavailable

from ..bus.jetstream import api_subject
from .bucket import NotSetUp

CHUNK_BYTES, MAX_CHUNKS = 2**17, 8192
"""Of an object: chunks of the size that all clients make, and as many of them as a gigabyte takes."""
MAX_META_BYTES = 65_536
REQUEST_S = 5.0
PATIENCE_S, SLOWEST_BYTES_PER_S = 30.0, 5_000_000
_NO_MESSAGE, _NO_STREAM = 10037, 10059


class _Options(BaseModel):
    link: Any = None


class ObjectMeta(BaseModel):
    """What an object's metadata tell of it; what else they hold is not looked at."""

    nuid: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    size: int = Field(0, ge=0)
    chunks: int = Field(0, ge=0)
    digest: str = ""
    deleted: bool = False
    options: _Options | None = None


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of a bucket. bucket: its name."""

    nc: Client
    bucket: str

    async def meta(self, name: str) -> ObjectMeta:
        """An object's metadata, if it may be read.

        Raises NotFound, InvalidField, TooLarge, NotSetUp, Unavailable, and what an absent server raises.
        """
        subject = f"$O.{self.bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"
        found = await self._message(last_by_subj=subject)
        meta = None if found is None else _read_meta(name, base64.b64decode(found.get("data", "")))
        if meta is None or meta.deleted:
            put = f"nats object put {self.bucket} FILE --name {name}"
            raise NotFound(f"there is no object {name!r} in the bucket {self.bucket}; put it there as admin: {put}")
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
        """Write an object's bytes, which may be more than memory holds, as they come.

        Raises what `meta` raises; InvalidField too where they are not all there, are not those that the metadata tell
        of, or do not come in time.
        """
        meta = await self.meta(name)
        patience_s = PATIENCE_S + meta.size / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(patience_s) as timer:
                digest = await self._copy(name, meta, file)
        except TimeoutError:
            if timer.expired():
                raise _bad(name, f"did not come within {patience_s:.0f} s") from None
            raise
        if meta.digest.rstrip("=") != f"SHA-256={digest}".rstrip("="):
            raise _bad(name, "is spoilt: its SHA-256 is not the one in its metadata; put it there again")

    async def _copy(self, name: str, meta: ObjectMeta, file: BinaryIO) -> str:
        """-> the SHA-256 of what was written, as metadata have it."""
        digest, size, at = sha256(), 0, 0

        def take(message: dict[str, Any]) -> int:
            data = base64.b64decode(message.get("data", ""))
            digest.update(data)
            return file.write(data)

        for number in range(1, meta.chunks + 1):
            message = await self._message(seq=at + 1, next_by_subj=f"$O.{self.bucket}.C.{meta.nuid}")
            if message is None:
                raise _bad(name, f"is not whole: chunk {number} of {meta.chunks} is missing; put it there again")
            at = message["seq"]
            size += await asyncio.to_thread(take, message)
            if size > meta.size:
                break
        if size != meta.size:
            raise _bad(name, f"has not the {meta.size} bytes that its metadata tell of; put it there again")
        return base64.urlsafe_b64encode(digest.digest()).decode()

    async def _message(self, **which: Any) -> dict[str, Any] | None:
        """One message of the bucket's stream; None where there is none. What headers its sender gave it is not read."""
        subject = api_subject(self.nc, f"STREAM.MSG.GET.OBJ_{self.bucket}")
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
