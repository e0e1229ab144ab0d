"""Uploads of training data: workers put the chunks that callers send into the object bucket.

Any worker can take any chunk. The bucket holds the whole state of an upload, and JetStream enforces the chunks' order.
"""

import base64
import hashlib
from dataclasses import dataclass, field

import orjson
from nats.js.api import Header, ObjectInfo, ObjectMetaOptions
from nats.js.errors import APIError

from models.training.data.dataset import MAX_GIVEN_BYTES
from subjects.errors import Busy, Conflict, TooLarge, Unavailable
from subjects.uploads import CHUNK_BYTES, UploadReply, UploadRequest

from ..admission import RateLimit
from .bucket import requiring_set_up
from .objects import Objects
from .retry import FULL, OVERTAKEN

MAX_BYTES, MAX_MESSAGES = 3 * 2**30, 49_152
"""Beyond this no chunk is accepted: the rest of the bucket is kept for the administrator."""
MAX_UPLOADS = 256
"""Of one user, in a day: the server lists them for each chunk."""
LOOKUPS_S = 20
"""The most lookups of repeated chunks a second, because a small request makes a worker read a whole chunk."""


@dataclass(frozen=True, slots=True)
class Uploads:
    """Stores the chunks of uploads. An upload's id is the name of its object.

    Its chunks have a subject below one of the user, so that JetStream counts what a user has.
    """

    objects: Objects
    _lookups: RateLimit = field(default_factory=lambda: RateLimit(LOOKUPS_S))

    async def add(self, request: UploadRequest, user: str) -> UploadReply:
        """Store a chunk, and after the last one the object's metadata.

        Repeating a chunk changes nothing. The digest is checked when the object is read. user: who sends it, any text.
        Raises Conflict for a chunk out of order, TooLarge, Busy if the bucket is full or the user has as much of it as
        is left, Unavailable, NotSetUp, and what an absent server raises.
        """
        owner = hashlib.sha256(user.encode()).hexdigest()[:16]
        nuid = f"{owner}.{request.upload}"
        subject = self.objects.chunk_subject(nuid)
        await self._require_space(subject, self.objects.chunk_subject(f"{owner}.*"))
        sequence = await self._publish(subject, request.data, request.after)
        if sequence is None:
            sequence = await self._found(subject, request)
        name = await self._end(request, nuid, request.sha256) if request.sha256 else None
        return UploadReply(upload=request.upload, sequence=sequence, object=name)

    async def _end(self, request: UploadRequest, nuid: str, sha256: str) -> str:
        """Write the object's metadata, once -> its name."""
        bucket, name, subject = self.objects.bucket, request.upload, self.objects.chunk_subject(nuid)
        chunks = (await self._usage(subject))[0].get(subject, 0)
        size = (chunks - 1) * CHUNK_BYTES + len(request.data)
        if size > MAX_GIVEN_BYTES:
            raise _too_large()
        digest = f"SHA-256={base64.urlsafe_b64encode(bytes.fromhex(sha256)).decode()}"
        options = ObjectMetaOptions(max_chunk_size=CHUNK_BYTES)
        meta = ObjectInfo(name, bucket, nuid=nuid, size=size, chunks=chunks, digest=digest, options=options)
        written = await self._publish(self.objects.meta_subject(name), orjson.dumps(meta.as_dict()), 0)
        if written is None and (await self.objects.meta(name)).digest != digest:
            raise Conflict(f"field 'sha256': object {name!r} is there already, with another one; begin a new upload")
        return name

    async def _found(self, subject: str, request: UploadRequest) -> int:
        """The sequence of a chunk that is stored already, as after a lost reply. Raises Conflict, Busy."""
        if not self._lookups.allows():
            raise Busy("too many chunks are sent again; try again later", retry_after_ms=1000)
        found = await self.objects.message(seq=request.after + 1, next_by_subj=subject)
        if found is None or base64.b64decode(found.get("data", "")) != request.data:
            raise Conflict(
                f"field 'after': the next chunk of this upload does not come after {request.after}; send one chunk "
                "after the other, each with the sequence that the one before was answered with"
            )
        return int(found["seq"])

    async def _require_space(self, subject: str, of_user: str) -> None:
        """Raises TooLarge, Busy. subject: of the upload's chunks. of_user: of those of all uploads of its user."""
        uploads, messages, size = await self._usage(of_user)
        if (uploads.get(subject, 0) - 1) * CHUNK_BYTES > MAX_GIVEN_BYTES:  # the last one may be repeated
            raise _too_large()
        if size >= MAX_BYTES or messages >= MAX_MESSAGES:
            raise _full()
        chunks = sum(uploads.values())
        if chunks * CHUNK_BYTES > MAX_BYTES - size or chunks > MAX_MESSAGES - messages:
            raise Busy("your uploads of today fill as much as is left for all; try again later", retry_after_ms=60_000)
        if subject not in uploads and len(uploads) >= MAX_UPLOADS:
            raise Busy(f"you have begun {MAX_UPLOADS} uploads within a day; try again later", retry_after_ms=60_000)

    async def _usage(self, subject: str) -> tuple[dict[str, int], int, int]:
        """-> the messages on each subject that this one matches, and the messages and the bytes in the bucket."""
        with requiring_set_up():
            state = (await self.objects.nc.jetstream().stream_info(self.objects.stream, subject)).state
        return state.subjects or {}, state.messages, state.bytes

    async def _publish(self, subject: str, data: bytes, after: int) -> int | None:
        """Store a message -> its sequence; None if the subject's last message is not `after`."""
        headers = {Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(after)}
        try:
            stored = await self.objects.nc.jetstream().publish(subject, data, headers=headers)
        except APIError as error:
            if error.err_code in OVERTAKEN:
                return None
            if error.err_code in FULL:
                raise _full() from None
            raise Unavailable(f"the bucket did not take it ({error.description}); send it again") from error
        return stored.seq


def _full() -> Busy:
    return Busy("there is no room for more training data now; try again later", retry_after_ms=60_000)


def _too_large() -> TooLarge:
    return TooLarge(f"an upload may have {MAX_GIVEN_BYTES} bytes at most; part it, for a job each")
