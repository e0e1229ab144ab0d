"""Checks a request to fine-tune and queues it as a job: first the job's state is written, then its message is sent."""

import asyncio
import hashlib
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeAlias

import structlog
from nats.aio.client import Client
from nats.js.api import Header
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from models.catalogue import Catalogue, Form, ModelSpec
from models.training.data.dataset import check_given
from models.training.data.records import Pair
from models.training.errors import PathRefused
from models.weights import hub
from models.weights.versions import version_folder
from subjects import names
from subjects.errors import Busy, InvalidField, MLError, TooLarge, Unavailable
from subjects.finetune import FinetuneReply, FinetuneRequest, TrainingPair
from subjects.jobs import Job

from ..settings import Settings
from .bucket import NotSetUp
from .objects import Objects
from .retry import FULL, OVERTAKEN, TROUBLE
from .setup import MAX_JOBS, MAX_REQUESTED
from .store import JobStore

log = structlog.get_logger(__name__)

Origin: TypeAlias = Literal["request", "nightly"]
Check: TypeAlias = Callable[[ModelSpec, Path], None]
"""Raises CannotTrain if the entry's weights in this folder cannot be trained."""


@dataclass(frozen=True, slots=True)
class Submission:
    """Accepts, checks and queues requests to fine-tune. defaults: the default model of each form of request."""

    nc: Client
    store: JobStore
    catalogue: Catalogue
    defaults: Mapping[Form, str]
    settings: Settings
    check_trainable: Check
    _publish_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def submit(self, request: FinetuneRequest, origin: Origin = "request") -> FinetuneReply:
        """Queue a job; an existing job of the same id is not changed.

        Raises UnknownModel, InvalidField, PathRefused, NoPairs, CannotTrain, ModelUnavailable, NotFound, TooLarge,
        Busy, Conflict, NotSetUp and Unavailable, and what an absent server raises.
        """
        entry = self.catalogue.get(request.model or self.defaults.get("embedding", ""))
        job_id = await self._id(request, origin)
        request = request.model_copy(update={"id": job_id, "model": entry.id})
        if job := await self.store.get(job_id):
            return await self._again(job, request, origin)
        await self._check(request, entry)
        body = await self._body(request)
        now = datetime.now(UTC)
        job = Job(
            id=job_id,
            origin=origin,
            model=entry.id,
            source=_source(request),
            digest=digest_of(body),
            state="queued",
            promote=origin == "nightly" and self.settings.finetune.nightly.promote,
            created_at=now,
            updated_at=now,
        )
        if not await self.store.create(job):
            return FinetuneReply(job=job_id, duplicate=True)
        await self._enqueue(job, body, made=True)
        log.info("job.queued", job=job_id, model=entry.id, source=job.source, origin=origin)
        return FinetuneReply(job=job_id, duplicate=False)

    async def cancel(self, job_id: str) -> Job:
        """Cancel a job -> its state then; a queued one leaves the queue.

        Raises NotFound, NotSetUp, and what an absent server raises.
        """
        job = await self.store.request_cancel(job_id)
        if job.state == "cancelled":
            with suppress(APIError, *TROUBLE):  # a worker that pulls its message sees that it has ended
                await self.nc.jetstream().purge_stream(names.JOBS_STREAM, subject=names.job_queue_subject(job_id))
        return job

    async def _id(self, request: FinetuneRequest, origin: Origin) -> str:
        """The job's id. Knowing it is the right to see and cancel the job."""
        if request.id is not None and origin == "nightly":
            return await self.store.secret_id(request.id)
        return request.id or secrets.token_hex(16)

    async def _again(self, job: Job, request: FinetuneRequest, origin: Origin) -> FinetuneReply:
        """Send the message of a queued job again, in case it was lost; the server stores it once.

        Only if the request is the same and of the same origin: a caller that guesses the id of a nightly job must not
        define it. The job's key is written first, because the sweep ends jobs whose key is older than all messages.
        """
        body = await self._body(request)
        if job.state == "queued" and job.attempt == 0 and job.origin == origin and job.digest == digest_of(body):
            await self.store.change(job.id, updated_at=datetime.now(UTC))
            await self._enqueue(job, body, made=False)
        return FinetuneReply(job=job.id, duplicate=True)

    async def _check(self, request: FinetuneRequest, entry: ModelSpec) -> None:
        if entry.kind != "embedding":
            raise InvalidField(
                f"field 'model': model {entry.id!r} generates text; only embedding models are trained here"
            )
        if request.options.loss == "triplet" and not _may_have_negatives(request):
            raise InvalidField(
                "field 'options.loss': triplet needs negatives; give some in 'pairs', or for a codebase "
                "'options.hard_negatives' above 0"
            )
        await asyncio.to_thread(self._check_weights, entry)
        if request.path is not None:
            await asyncio.to_thread(self._check_path, request.path)
        if request.pairs is not None:
            await asyncio.to_thread(_check_pairs, request.pairs, request.options.seed)
        if request.object is not None:
            await Objects(self.nc, names.DATA_BUCKET).meta(request.object)

    def _check_weights(self, entry: ModelSpec) -> None:
        live = version_folder(self.settings.checkpoints_dir, entry.id)
        self.check_trainable(entry, live or hub.locate(entry, download=False))

    def _check_path(self, path: str) -> None:
        folder = folder_below(path, self.settings.finetune.roots)
        if fault := _fault(folder):  # only below the roots, so that callers learn nothing about other paths
            raise PathRefused(path, f"{fault}; name the folder of a codebase")

    async def _body(self, request: FinetuneRequest) -> bytes:
        body = await asyncio.to_thread(request.model_dump_json, exclude_none=True)
        limit = int(self.nc.max_payload) - 1024
        if len(body) > limit:
            raise TooLarge(
                f"the request takes {len(body)} bytes in the queue and a message holds {limit}; send the "
                f"pairs as JSON lines on {names.FINETUNE_UPLOAD}, and the name that it answers as 'object'"
            )
        return body.encode()

    async def _enqueue(self, job: Job, body: bytes, *, made: bool) -> None:
        """Send the message. Its id, made of the job's id and creation time, makes the server store it once.

        made: whether this call created the job; it is then removed if the queue refuses the message. If the server does
        not confirm, the job stays, so that the same id can be sent again.
        """
        try:
            with _refusals():
                await self._publish(job, body)
        except MLError:
            if made:
                await self.store.remove(job.id)
            raise
        except TROUBLE as error:
            raise Unavailable(
                f"the NATS server did not confirm job {job.id!r} ({str(error) or repr(error)}); ask again with this id"
            ) from None

    async def _publish(self, job: Job, body: bytes) -> None:
        """Put the message into the queue. Raises Busy if only the nightly run's place is left.

        In the whole fleet callers' messages are stored one by one: each expects the last sequence that the count saw.
        """
        js, subject = self.nc.jetstream(), names.job_queue_subject(job.id)
        headers = {Header.MSG_ID.value: f"{job.id}.{job.created_at.timestamp()}"}
        if job.origin == "nightly":
            await js.publish(subject, body, stream=names.JOBS_STREAM, headers=headers)
            return
        async with self._publish_lock:
            for _ in range(MAX_JOBS):
                state = (await js.stream_info(names.JOBS_STREAM, subject)).state
                if state.messages >= MAX_REQUESTED:
                    if subject in (state.subjects or {}):
                        return  # it was stored before
                    raise _full(MAX_REQUESTED)
                headers[Header.EXPECTED_LAST_SEQUENCE.value] = str(state.last_seq)
                try:
                    await js.publish(subject, body, stream=names.JOBS_STREAM, headers=headers)
                except APIError as error:
                    if error.err_code not in OVERTAKEN:
                        raise
                else:
                    return
        raise Busy("others put jobs into the queue all the time; ask again", retry_after_ms=1000)


@contextmanager
def _refusals() -> Iterator[None]:
    """Inside, a refusal of the queue becomes an error of the wire."""
    try:
        yield
    except (NoStreamResponseError, NotFoundError):
        raise NotSetUp from None
    except APIError as error:
        if error.err_code in FULL:
            raise _full(MAX_JOBS) from None
        raise Unavailable(f"the queue of jobs did not take it ({error.description}); ask again later") from error


def _full(jobs: int) -> Busy:
    return Busy(f"{jobs} jobs wait or run; ask again when one of them is over", retry_after_ms=60_000)


def folder_below(path: str, roots: Sequence[Path]) -> Path:
    """The real path of a codebase. Raises PathRefused if it is not below one of the roots."""
    try:
        folder = Path(path).resolve()
        allowed = [root.resolve() for root in roots]
    except (OSError, ValueError, RuntimeError):  # RuntimeError: a loop of links
        raise PathRefused(path, "it leads nowhere; name the folder of a codebase") from None
    if not any(folder.is_relative_to(root) for root in allowed):
        named = ", ".join(map(str, allowed)) or "none"
        raise PathRefused(path, f"it is not below one of the worker's finetune.roots ({named})")
    return folder


def digest_of(body: bytes) -> str:
    """The digest in the job's key that ties its message to it; only workers can write keys."""
    return hashlib.sha256(body).hexdigest()


def _fault(folder: Path) -> str | None:
    """Why the worker cannot use it as a folder; None if it can."""
    try:
        return None if stat.S_ISDIR(folder.stat().st_mode) else "it is no folder"
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such folder on the worker's machine"
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"


def _may_have_negatives(request: FinetuneRequest) -> bool:
    if request.path is not None:
        return request.options.hard_negatives > 0
    return request.pairs is None or any(pair.negatives for pair in request.pairs)


def _check_pairs(pairs: Sequence[TrainingPair], seed: int) -> None:
    check_given((Pair(pair.anchor, pair.positive, "given") for pair in pairs), seed)


def _source(request: FinetuneRequest) -> str:
    if request.path is not None:
        return request.path
    return f"object {request.object!r}" if request.pairs is None else f"{len(request.pairs)} pairs of the request"
