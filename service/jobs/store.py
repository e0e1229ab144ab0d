"""The jobs' states in the key-value bucket: made, changed by compare-and-set, listed, forgotten; each change published.

Owns the keys `job.<id>`, `trained.<model>.<code>` and `secret`. Knows nothing of what a job does or who works on it.
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
from nats.js.errors import (
    KeyNotFoundError,
    KeyWrongLastSequenceError,
    NotFoundError,
    ServiceUnavailableError,
)
from nats.js.kv import KeyValue
from pydantic import ValidationError

from subjects import codec, names
from subjects.errors import NotFound, NotServed
from subjects.jobs import TERMINAL, Job
from subjects.names import JobState

from .entries import entries
from .shared import Shared

log = structlog.get_logger(__name__)

KEPT_JOBS = 1000
"""How many jobs that are over are remembered. A listing reads them all, in about a tenth of a second."""
_FORGET_EVERY = 50
_MARKER_S = 60
_TRIES = 50
_SECRET = "secret"
_NAME_CHARS = 60

Changing = Callable[[Job], Job]
"""From a job as it stands to how it should stand; called again where somebody else changed it meanwhile."""


class NotSetUp(NotServed):
    """The streams and buckets of fine-tuning are not there."""

    def __init__(self) -> None:
        super().__init__(
            "fine-tuning is not set up on this NATS server: run `mlbus admin init` once, as its administrator; the "
            "server needs JetStream (nats-server -js)"
        )


def no_such_job(job_id: str) -> NotFound:
    """What is answered where there is no job of an id."""
    return NotFound(f"there is no job {job_id!r}; those that are over are forgotten in time")


class JobStore:
    """kept: how many jobs that are over are remembered."""

    def __init__(self, nc: Client, kept: int = KEPT_JOBS) -> None:
        self._nc = nc
        self._js: JetStreamContext = nc.jetstream()
        self._kept = kept
        self._bucket: KeyValue | None = None
        self._ended = 0
        self._everything = Shared(self._read_all)
        self._known: Sequence[Job] = ()
        self._read_at: object = None

    async def create(self, job: Job) -> bool:
        """Make a job -> whether it is new; one of this id that is there stays as it is. Raises NotSetUp."""
        bucket = await self.bucket()
        try:
            await bucket.create(_key(job.id), _dumped(job))
        except KeyWrongLastSequenceError:
            return False
        await self._publish(job)
        return True

    async def get(self, job_id: str) -> Job | None:
        """A job as it stands. Raises NotSetUp."""
        bucket = await self.bucket()
        try:
            return _read(await bucket.get(_key(job_id)))
        except KeyNotFoundError:
            return None
        except (NoRespondersError, ServiceUnavailableError):
            await self._require_bucket()
            raise

    async def written_at(self, job_id: str) -> datetime | None:
        """When a job was last changed, by the server's clock; None where it is not there. Raises NotSetUp."""
        await self.bucket()
        stream, subject = f"KV_{names.JOBS_BUCKET}", f"$KV.{names.JOBS_BUCKET}.{_key(job_id)}"
        try:
            return (await self._js.get_last_msg(stream, subject, direct=True)).time
        except NotFoundError:
            return None

    async def change(self, job_id: str, changing: Changing | None = None, **fields: Any) -> Job:
        """Change some fields of a job, or what a function makes of it -> the job as it then stands.

        A job that is over stays as it is. What others change at the same time is kept. Raises NotFound, NotSetUp, and
        what `changing` raises.
        """
        bucket = await self.bucket()
        changing = changing or (lambda job: job.model_copy(update=fields))
        for _ in range(_TRIES):
            try:
                entry = await bucket.get(_key(job_id))
            except KeyNotFoundError:
                raise no_such_job(job_id) from None
            before = _read(entry)
            after = before if before.state in TERMINAL else changing(before)
            if after == before:
                return before
            after = after.model_copy(update={"updated_at": datetime.now(UTC)})
            try:
                await bucket.update(_key(job_id), _dumped(after), last=entry.revision)
            except KeyWrongLastSequenceError:
                continue
            await self._publish(after)
            await self._note_end(after)
            return after
        raise RuntimeError(f"job {job_id!r} was changed by others {_TRIES} times in a row")

    async def request_cancel(self, job_id: str) -> Job:
        """Have a job end: at once where no worker has it, else as soon as that worker hears of it. Raises NotFound."""

        def cancelled(job: Job) -> Job:
            if job.state == "queued":
                return job.model_copy(update={"state": "cancelled", "reason": "cancelled before it began"})
            return job.model_copy(update={"cancel_requested": True})

        return await self.change(job_id, cancelled)

    async def request_promotion(self, job_id: str) -> Job:
        """Have a job's version serve once it has passed -> the job; of one that is over as it is. Raises NotFound."""
        return await self.change(job_id, promote=True)

    async def list(
        self, state: JobState | None = None, model: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[Job]:
        """The newest jobs, newest first; before: only older ones than the job of this id. Raises NotFound, NotSetUp."""
        jobs = sorted(await self._all(), key=lambda job: (job.created_at, job.id), reverse=True)
        if before is not None:
            place = next((place for place, job in enumerate(jobs) if job.id == before), None)
            if place is None:
                raise NotFound(f"there is no job {before!r} any more; begin with the newest")
            jobs = jobs[place + 1 :]
        found = (job for job in jobs if state in (None, job.state) and model in (None, job.model))
        return [*islice(found, limit)]

    async def secret_id(self, name: str) -> str:
        """A job's id for a name that every worker gives it: the same for all of them, and for nobody to guess."""
        bucket = await self.bucket()
        with suppress(KeyWrongLastSequenceError):
            await bucket.create(_SECRET, secrets.token_bytes())
        key = (await bucket.get(_SECRET)).value or b""
        return f"{name[:_NAME_CHARS]}-{hmac.digest(key, name.encode(), 'sha256').hex()[:32]}"

    async def remove(self, job_id: str) -> None:
        """Forget a job, so that its id may be used again."""
        await (await self.bucket()).purge(_key(job_id), msg_ttl=_MARKER_S)  # the marker goes too, after that time

    async def trained_on(self, model: str, codebase: str) -> str | None:
        """The digest of the code that a model was last trained on, of one codebase."""
        bucket = await self.bucket()
        try:
            value = (await bucket.get(_trained_key(model, codebase))).value
        except KeyNotFoundError:
            return None
        return (value or b"").decode()

    async def note_trained(self, model: str, codebase: str, digest: str) -> None:
        """Remember that digest."""
        await (await self.bucket()).put(_trained_key(model, codebase), digest.encode())

    async def bucket(self) -> KeyValue:
        """The bucket, looked up once it is there. Raises NotSetUp."""
        if self._bucket is None:
            try:
                self._bucket = await self._js.key_value(names.JOBS_BUCKET)
            except (NotFoundError, ServiceUnavailableError, NoRespondersError):
                raise NotSetUp from None
        return self._bucket

    async def _require_bucket(self) -> None:
        """Raises NotSetUp where the bucket has gone, and what an absent server raises."""
        try:
            await self._js.stream_info(f"KV_{names.JOBS_BUCKET}")
        except NotFoundError:
            self._bucket = None
            raise NotSetUp from None

    async def _publish(self, job: Job) -> None:
        await self._nc.publish(names.job_event_subject(job.id), _dumped(job), headers={names.CONTENT_TYPE: names.JSON})

    async def _note_end(self, job: Job) -> None:
        """Now and then, the first time early: most processes see few jobs end."""
        if job.state in TERMINAL:
            self._ended += 1
            if self._ended % _FORGET_EVERY == 1:
                await self._forget()

    async def _forget(self) -> None:
        over = [job for job in await self._all() if job.state in TERMINAL]
        over.sort(key=lambda job: (job.attempt > 0, job.updated_at), reverse=True)  # what never began goes first
        for job in over[self._kept :]:
            await self.remove(job.id)

    async def _all(self) -> Sequence[Job]:
        """Every job, as of now or later."""
        return await self._everything.result()

    async def _read_all(self) -> Sequence[Job]:
        """A thousand take a tenth of a second, so they are read again only where the bucket has changed since."""
        bucket = await self.bucket()
        info = await self._js.stream_info(f"KV_{names.JOBS_BUCKET}")
        state = info.created, info.state.messages, info.state.last_seq
        if state != self._read_at:
            found = await entries(self._js, bucket, "job.")
            self._known, self._read_at = [job for entry in found if (job := _read_any(entry))], state
        return self._known


def _key(job_id: str) -> str:
    return f"job.{job_id}"


def _trained_key(model: str, codebase: str) -> str:
    return f"trained.{model}.{hashlib.sha256(codebase.encode()).hexdigest()[:16]}"


def _read_any(entry: KeyValue.Entry) -> Job | None:
    """A job; one that somebody else's program has spoilt must not hide all others."""
    try:
        return _read(entry)
    except ValidationError:
        log.warning("job.unreadable", key=entry.key)
        return None


def _read(entry: KeyValue.Entry) -> Job:
    return Job.model_validate_json(entry.value or b"")


_dumped = functools.partial(codec.dumps, content_type=names.JSON)
