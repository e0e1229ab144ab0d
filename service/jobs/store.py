"""Job states in the key-value bucket: created, changed, listed, forgotten. Every change is published as an event.

Keys: `job.<id>`, `trained.<model>.<codebase>` and `secret`.
"""

import functools
import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import structlog
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js import JetStreamContext
from nats.js.errors import KeyWrongLastSequenceError, NotFoundError, ServiceUnavailableError
from nats.js.kv import KeyValue
from pydantic import ValidationError

from subjects import codec, names
from subjects.errors import NotFound
from subjects.jobs import TERMINAL, Job
from subjects.names import JobState

from .bucket import STREAM, SUBJECT, NotSetUp, SharedRead, compare_and_set, jobs_bucket, read_entries, read_entry

log = structlog.get_logger(__name__)

KEPT_JOBS = 1000
"""How many finished jobs are remembered. Listing reads them all, in about a tenth of a second."""
_FORGET_EVERY = 50
_MARKER_S = 60
_SECRET = "secret"
_NAME_CHARS = 60

Changing = Callable[[Job], Job]
"""Makes the new state of a job of its present one. Called again if somebody else changed the job in between."""


def _no_such_job(job_id: str) -> NotFound:
    return NotFound(f"there is no job {job_id!r}; those that are over are forgotten in time")


class JobStore:
    """The states of all jobs. kept: how many finished jobs are remembered."""

    def __init__(self, nc: Client, kept: int = KEPT_JOBS) -> None:
        self._nc = nc
        self._js: JetStreamContext = nc.jetstream()
        self._kept = kept
        self._bucket: KeyValue | None = None
        self._ended = 0
        self._all_jobs = SharedRead(self._read_all)
        self._jobs: Sequence[Job] = ()
        self._read_at: object = None

    async def create(self, job: Job) -> bool:
        """Create a job -> whether it is new; an existing job of this id is not changed. Raises NotSetUp."""
        bucket = await self.bucket()
        try:
            await bucket.create(_key(job.id), _dumped(job))
        except KeyWrongLastSequenceError:
            return False
        await self._publish(job)
        return True

    async def get(self, job_id: str) -> Job | None:
        """The present state of a job. Raises NotSetUp."""
        bucket = await self.bucket()
        try:
            entry = await read_entry(bucket, _key(job_id))
        except (NoRespondersError, ServiceUnavailableError):
            await self._require_bucket()
            raise
        return _read(entry) if entry else None

    async def require(self, job_id: str) -> Job:
        """The present state of a job. Raises NotFound, NotSetUp."""
        if (job := await self.get(job_id)) is None:
            raise _no_such_job(job_id)
        return job

    async def written_at(self, job_id: str) -> datetime | None:
        """When a job was last changed, by the server's clock; None if there is no such job. Raises NotSetUp."""
        await self.bucket()
        try:
            return (await self._js.get_last_msg(STREAM, SUBJECT + _key(job_id), direct=True)).time
        except NotFoundError:
            return None

    async def change(self, job_id: str, changing: Changing | None = None, **fields: Any) -> Job:
        """Change a job by a function, or some of its fields -> its new state.

        A finished job is not changed. Concurrent changes by others are kept. Raises NotFound, NotSetUp, and what
        `changing` raises.
        """
        changing = changing or (lambda job: job.model_copy(update=fields))
        job: Job

        def changed(entry: KeyValue.Entry | None) -> bytes | None:
            nonlocal job
            if entry is None:
                raise _no_such_job(job_id)
            before = _read(entry)
            job = before if before.state in TERMINAL else changing(before)
            if job == before:
                return None
            job = job.model_copy(update={"updated_at": datetime.now(UTC)})
            return _dumped(job)

        if await compare_and_set(await self.bucket(), _key(job_id), changed):
            await self._publish(job)
            await self._count_end(job)
        return job

    async def request_cancel(self, job_id: str) -> Job:
        """Cancel a job: at once if it is queued, else as soon as its worker sees the request. Raises NotFound."""

        def cancelled(job: Job) -> Job:
            if job.state == "queued":
                return job.model_copy(update={"state": "cancelled", "reason": "cancelled before it began"})
            return job.model_copy(update={"cancel_requested": True})

        return await self.change(job_id, cancelled)

    async def request_promotion(self, job_id: str) -> Job:
        """Ask that a job's version goes live if it passes -> the job; a finished one is unchanged. Raises NotFound."""
        return await self.change(job_id, promote=True)

    async def list(
        self, state: JobState | None = None, model: str | None = None, limit: int | None = 50, before: str | None = None
    ) -> list[Job]:
        """Jobs, newest first. limit: None for all.

        before: the id of a job; only older ones are listed. Raises NotFound if that job is gone, NotSetUp.
        """
        jobs = sorted(await self._all_jobs.result(), key=lambda job: (job.created_at, job.id), reverse=True)
        if before is not None:
            place = next((place for place, job in enumerate(jobs) if job.id == before), None)
            if place is None:
                raise NotFound(f"there is no job {before!r} any more; begin with the newest")
            jobs = jobs[place + 1 :]
        found = (job for job in jobs if state in (None, job.state) and model in (None, job.model))
        return [*islice(found, limit)]

    async def secret_id(self, name: str) -> str:
        """An unguessable job id made of a name, the same on every worker."""
        bucket = await self.bucket()
        with suppress(KeyWrongLastSequenceError):
            await bucket.create(_SECRET, secrets.token_bytes())
        key = (await bucket.get(_SECRET)).value or b""
        return f"{name[:_NAME_CHARS]}-{hmac.digest(key, name.encode(), 'sha256').hex()[:32]}"

    async def remove(self, job_id: str) -> None:
        """Forget a job, so that its id can be used again."""
        await (await self.bucket()).purge(_key(job_id), msg_ttl=_MARKER_S)  # the marker expires too

    async def trained_on(self, model: str, codebase: str) -> str | None:
        """The digest of the code of a codebase that a model was last trained on."""
        entry = await read_entry(await self.bucket(), _trained_key(model, codebase))
        return (entry.value or b"").decode() if entry else None

    async def note_trained(self, model: str, codebase: str, digest: str) -> None:
        """Remember that digest."""
        await (await self.bucket()).put(_trained_key(model, codebase), digest.encode())

    async def bucket(self) -> KeyValue:
        """The bucket; once found it is kept. Raises NotSetUp."""
        if self._bucket is None:
            self._bucket = await jobs_bucket(self._nc)
        return self._bucket

    async def _require_bucket(self) -> None:
        """Raises NotSetUp if the bucket was removed, and what an absent server raises."""
        try:
            await self._js.stream_info(STREAM)
        except NotFoundError:
            self._bucket = None
            raise NotSetUp from None

    async def _publish(self, job: Job) -> None:
        await self._nc.publish(names.job_event_subject(job.id), _dumped(job), headers={names.CONTENT_TYPE: names.JSON})

    async def _count_end(self, job: Job) -> None:
        """Forget old jobs after the first end and every 50th: most processes see few jobs end."""
        if job.state in TERMINAL:
            self._ended += 1
            if self._ended % _FORGET_EVERY == 1:
                await self._forget()

    async def _forget(self) -> None:
        over = [job for job in await self._all_jobs.result() if job.state in TERMINAL]
        over.sort(key=lambda job: (job.attempt > 0, job.updated_at), reverse=True)  # jobs that never began go first
        for job in over[self._kept :]:
            await self.remove(job.id)

    async def _read_all(self) -> Sequence[Job]:
        """Reading a thousand takes a tenth of a second, so they are read again only if the bucket has changed."""
        bucket = await self.bucket()
        info = await self._js.stream_info(STREAM)
        state = info.created, info.state.messages, info.state.last_seq
        if state != self._read_at:
            found = await read_entries(self._js, bucket, "job.")
            self._jobs, self._read_at = [job for entry in found if (job := _read_or_skip(entry))], state
        return self._jobs


def _key(job_id: str) -> str:
    return f"job.{job_id}"


def _trained_key(model: str, codebase: str) -> str:
    return f"trained.{model}.{hashlib.sha256(codebase.encode()).hexdigest()[:16]}"


def _read_or_skip(entry: KeyValue.Entry) -> Job | None:
    """None for an entry that another program has spoilt: it must not hide all others."""
    try:
        return _read(entry)
    except ValidationError:
        log.warning("job.unreadable", key=entry.key)
        return None


def _read(entry: KeyValue.Entry) -> Job:
    return Job.model_validate_json(entry.value or b"")


_dumped = functools.partial(codec.dumps, content_type=names.JSON)
