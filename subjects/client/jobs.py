"""`MLClient`'s fine-tuning: submits jobs with their data, and follows them."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from hashlib import sha256
from os import PathLike, fspath
from typing import Any, TypeAlias, TypedDict
from uuid import uuid4

from nats.aio.client import Client
from typing_extensions import Unpack

from .. import codec, routes
from ..errors import DeadlinePassed, FrameLost, MLError
from ..finetune import FinetuneOptions, FinetuneReply, FinetuneRequest, TrainingPair
from ..jobs import TERMINAL, Job, JobsListReply, JobsWatchRequest
from ..names import JobState, TrainingLoss, TrainingMethod
from ..stream import PING
from ..uploads import UploadReply, UploadRequest, in_chunks
from .attempts import Pauses, Silence
from .replies import parse
from .transport import Transport, split

GivenPair: TypeAlias = TrainingPair | Mapping[str, Any] | list[Any] | tuple[Any, ...]
"""(anchor, positive) or (anchor, positive, negatives), the negatives one text or several; or the same by name."""

INLINE_PAIRS = 400
"""More pairs than these are uploaded: a worker reads a few thousand lists and maps from a message."""
UPLOAD_TIMEOUT_S, CHUNK_TIMEOUT_S = 300.0, 10.0
FIRST_RETRY_S, MAX_RETRY_S = 0.2, 5.0
"""The first and the longest pause before a job is watched again whose worker has left."""
_LOST = (DeadlinePassed, FrameLost)
"""The errors that mean that the worker or the connection was lost."""


class FinetuneCallOptions(TypedDict, total=False):
    """The options of a call besides its codebase or pairs; see FinetuneRequest and FinetuneOptions for the meanings."""

    object: str | None
    model: str | None
    id: str | None
    swap: bool
    timeout_s: float | None
    method: TrainingMethod
    loss: TrainingLoss
    matryoshka: bool
    epochs: int
    batch_size: int
    micro_batch: int | None
    learning_rate: float
    warmup: float
    max_tokens: int | None
    patience: int
    hard_negatives: int
    lora_rank: int
    seed: int


class FinetuneCalls:
    """Fine-tuning on a codebase of the worker's machine, or on pairs of the caller."""

    _nc: Client
    _transport: Transport

    async def finetune(
        self,
        *,
        path: str | PathLike[str] | None = None,
        pairs: Sequence[GivenPair] | None = None,
        **options: Unpack[FinetuneCallOptions],
    ) -> FinetuneReply:
        """Submit a training -> the id of its job at once; `jobs.watch` follows it.

        One of path, pairs and object names the data. Pairs that are too many for a message are uploaded before, in
        chunks, which may take five minutes besides timeout_s. id: the same id again is the same job.
        """
        fields, timeout_s = split(options)
        request = _request(path, pairs, fields)
        if request.pairs is not None and not self._fit(request.pairs):
            name = await self._upload(_lines(request.pairs))
            request = request.model_copy(update={"pairs": None, "object": name})
        return await self._transport.ask(routes.FINETUNE, request, timeout_s)

    def _fit(self, pairs: Sequence[TrainingPair]) -> bool:
        """Whether the pairs fit a message with all that goes around them."""
        return len(pairs) <= INLINE_PAIRS and sum(map(len, _lines(pairs))) <= self._nc.max_payload // 2

    async def _upload(self, lines: Iterable[bytes]) -> str | None:
        """Send data in chunks, one after the other -> the name of the object that they become."""
        upload, digest, reply = uuid4().hex, sha256(), None
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT_S):
                for data, is_last in in_chunks(lines):
                    digest.update(data)
                    reply = await self._send(
                        UploadRequest(
                            upload=upload,
                            after=reply.sequence if reply else 0,
                            data=data,
                            sha256=digest.hexdigest() if is_last else None,
                        )
                    )
        except TimeoutError:
            raise DeadlinePassed(f"the pairs could not be sent within {UPLOAD_TIMEOUT_S:.0f} s") from None
        return reply.object if reply else None

    async def _send(self, chunk: UploadRequest) -> UploadReply:
        """Send a chunk, again where no answer comes: it is taken once."""
        for _ in range(self._transport.retries):
            with suppress(DeadlinePassed):
                return await self._transport.ask(routes.FINETUNE_UPLOAD, chunk, CHUNK_TIMEOUT_S)
        return await self._transport.ask(routes.FINETUNE_UPLOAD, chunk, CHUNK_TIMEOUT_S)


def _lines(pairs: Iterable[TrainingPair]) -> Iterator[bytes]:
    """Each pair as a line of JSON."""
    for pair in pairs:
        yield pair.model_dump_json(exclude_defaults=True).encode() + b"\n"


def _request(
    path: str | PathLike[str] | None, pairs: Sequence[GivenPair] | None, fields: dict[str, Any]
) -> FinetuneRequest:
    """The request. It always has an id, so that a retried request is still one job."""
    own: dict[str, Any] = {name: fields.pop(name) for name in ("object", "model", "swap") if name in fields}
    job_id = fields.pop("id", None)
    own["id"] = uuid4().hex if job_id is None else job_id
    own["path"] = None if path is None else fspath(path)
    own["pairs"] = None if pairs is None else [_pair_fields(pair) for pair in pairs]
    return codec.validate({**own, "options": codec.validate(fields, FinetuneOptions)}, FinetuneRequest)


def _pair_fields(pair: GivenPair) -> Any:
    """A pair as a map of its fields; anything else is returned as it is, for the validation to refuse it."""
    if not isinstance(pair, list | tuple) or not 2 <= len(pair) <= 3:
        return pair
    anchor, positive, negatives = (*pair, [])[:3]
    several = list(negatives) if isinstance(negatives, list | tuple) else [negatives]
    return {"anchor": anchor, "positive": positive, "negatives": several}


class JobsClient:
    """The states of jobs."""

    def __init__(self, nc: Client, transport: Transport) -> None:
        self._nc = nc
        self._transport = transport

    async def get(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The present state of a job. Raises NotFound."""
        return await self._transport.ask(routes.JOBS_GET, {"id": job_id}, timeout_s)

    async def cancel(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """Cancel a job -> its state; a job that a worker runs ends a little later. Raises NotFound."""
        return await self._transport.ask(routes.JOBS_CANCEL, {"id": job_id}, timeout_s)

    async def watch(
        self, job_id: str, *, silence_s: float = 15.0, timeout_s: float | None = None
    ) -> AsyncGenerator[Job, None]:
        """The present state of a job, then each new one, until the job is over.

        silence_s: the time without a frame or ping after which the job is watched again, in seconds; it waits for
        workers and servers that are away. timeout_s: for the first state. Raises the errors of `get` for the first
        state; later every error that cannot be retried, Cancelled once the client is closed, and Unavailable once the
        connection is closed for good.
        """
        request = codec.validate({"id": job_id}, JobsWatchRequest)
        attempts, pauses = self._transport.attempts(timeout_s), Pauses(FIRST_RETRY_S, MAX_RETRY_S)
        job: Job | None = None
        while job is None or job.state not in TERMINAL:
            try:
                silence = Silence(silence_s if job else attempts.left_s(), silence_s)
                async with aclosing(self._states(request, silence)) as states:
                    async for newer in states:
                        if newer != job:
                            yield newer
                            job = newer
                            pauses.restart()
            except MLError as error:
                if job is None:
                    await attempts.wait(error)
                elif (error.retryable or isinstance(error, _LOST)) and not self._nc.is_closed:
                    await asyncio.sleep(pauses.after(error))
                else:
                    raise

    async def _states(self, request: JobsWatchRequest, silence: Silence) -> AsyncGenerator[Job, None]:
        """The states of a job from one worker, until the job is over or the worker leaves."""
        async with aclosing(self._transport.listen(routes.JOBS_WATCH, request, silence)) as frames:
            async for frame in frames:
                if frame.event != PING:
                    yield parse(frame.body, Job)

    # Last, because above it `list` is the type.

    async def list(
        self,
        state: JobState | None = None,
        *,
        model: str | None = None,
        limit: int | None = None,
        before: str | None = None,
        timeout_s: float | None = None,
    ) -> JobsListReply:
        """The newest jobs, newest first: those in a state or for a model, or all. Raises NotFound.

        limit: at most 100. before: only jobs older than the one with this id, for the next page.
        """
        fields: dict[str, Any] = {"state": state, "model": model, "before": before}
        if limit is not None:
            fields["limit"] = limit
        return await self._transport.ask(routes.JOBS_LIST, fields, timeout_s)
