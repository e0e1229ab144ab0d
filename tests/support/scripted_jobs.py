"""A worker for `ml.finetune` and `ml.jobs.*` that answers as a test tells it to, and does no job."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from service.bus.connection import settled
from subjects import FinetuneReply, Job, JobsListReply, codec, names, stream
from subjects.errors import MLError, Unavailable
from subjects.jobs import TERMINAL
from subjects.models import ModelsPromoteReply
from subjects.uploads import UploadReply

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def job(state: str, at: float = 0.0, **fields: Any) -> Job:
    """A job as it stands so many seconds after it was made."""
    times = {"created_at": NOW, "updated_at": NOW + timedelta(seconds=at)}
    return Job(**{"id": "j1", "model": "a", "source": "code", "state": state, **times, **fields})


@dataclass
class Watch:
    """A stream that somebody asked for, and how many frames it has had."""

    asked: Msg
    frames: int = 0


class JobsWorker:
    """Answers `ml.finetune`, `ml.jobs.*` and promotions. job: as it stands, or the error that is answered instead.

    duplicate, refusal: what `ml.finetune` answers; promotion: the error that a promotion ends in.
    asked: the requests' subjects and fields; uploaded: what was sent in chunks, by its upload.
    """

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.duplicate = False
        self.refusal: MLError | None = None
        self.promotion: MLError | None = None
        self.job: Job | MLError = job("queued")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.uploaded: dict[str, bytes] = {}
        self._questions = asyncio.Semaphore(0)
        self._watches: list[Watch] = []

    async def on_request(self, msg: Msg) -> None:
        fields = msgpack.unpackb(msg.data)
        if msg.subject != names.FINETUNE_UPLOAD:
            self.asked.append((msg.subject, fields))
        if msg.subject == names.JOBS_WATCH and isinstance(self.job, Job):
            self._watches.append(Watch(msg))
            await self._tell(self._watches[-1], self.job)
            self._questions.release()
            return
        answer: Any = self.job
        headers = {names.REQUEST_ID: msg.headers[names.REQUEST_ID]}
        if msg.subject == names.FINETUNE:
            answer = self.refusal or FinetuneReply(job=fields["id"], duplicate=self.duplicate)
        elif msg.subject == names.FINETUNE_UPLOAD:
            answer = self._take(**fields)
        elif msg.subject == names.MODELS_PROMOTE:
            named = {"worker": "W1", "model": "a", "live": "job" not in fields}
            answer = self.promotion or ModelsPromoteReply(**{**named, **fields})
        elif msg.subject == names.JOBS_LIST:
            answer = JobsListReply(jobs=[self.job])
        if isinstance(answer, MLError):
            await self.nc.publish(
                msg.reply, codec.dumps_error(answer, "", names.MSGPACK), headers=headers | answer.headers()
            )
        else:
            await self.nc.publish(msg.reply, codec.dumps(answer, names.MSGPACK), headers=headers)
        if msg.subject == names.JOBS_WATCH:
            self._questions.release()

    def _take(self, upload: str, data: bytes, after: int = 0, sha256: str | None = None) -> UploadReply:
        sent = self.uploaded.get(upload, b"")
        assert len(sent) == after
        self.uploaded[upload] = sent = sent + data
        assert sha256 in (None, hashlib.sha256(sent).hexdigest())
        return UploadReply(upload=upload, sequence=len(sent), object=upload if sha256 else None)

    async def publish(self, *jobs: Job) -> None:
        """Tell all watches how the job stands, and let it stand as the last one says."""
        for one in jobs:
            self.job = one
            for watch in self._watches:
                await self._tell(watch, one)
        await self.nc.flush()

    async def ping(self) -> None:
        """Tell all watches that there is nothing new."""
        for watch in self._watches:
            await self._send(watch, stream.PING, b"{}")

    async def leave(self) -> None:
        """End all watches as a worker does that shuts down."""
        for watch in self._watches:
            error = Unavailable("shutting down")
            await self._send(watch, stream.ERROR, codec.dumps_error(error, "", names.MSGPACK), error.headers())
        self._watches.clear()

    async def _tell(self, watch: Watch, one: Job) -> None:
        event = stream.DONE if one.state in TERMINAL else stream.JOB
        await self._send(watch, event, codec.dumps(one, names.MSGPACK))

    async def _send(self, watch: Watch, event: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        asked = {names.REQUEST_ID: (watch.asked.headers or {})[names.REQUEST_ID]}
        headers = asked | stream.frame_headers(event, watch.frames) | (headers or {})
        watch.frames += 1
        await self.nc.publish(watch.asked.reply, body, headers=headers)

    async def is_asked(self) -> None:
        """Somebody asks for the job."""
        await asyncio.wait_for(self._questions.acquire(), 20)


@asynccontextmanager
async def scripted_jobs(url: str) -> AsyncIterator[JobsWorker]:
    async with await nats.connect(url, reconnect_time_wait=0.1, max_reconnect_attempts=-1) as nc:
        worker = JobsWorker(nc)
        for subject in (
            names.FINETUNE,
            names.FINETUNE_UPLOAD,
            names.JOBS_GET,
            names.JOBS_WATCH,
            names.JOBS_LIST,
            names.JOBS_CANCEL,
            names.MODELS_PROMOTE,
        ):
            await nc.subscribe(subject, "ml", cb=worker.on_request)
        await settled(nc)
        yield worker
