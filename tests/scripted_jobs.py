"""A worker for `ml.finetune` and `ml.jobs.*` that answers as a test tells it to, and does no job."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from subjects import FinetuneReply, Job, JobsListReply, codec, names
from subjects.errors import MLError
from subjects.promote import ModelsPromoteReply

NOW = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def job(state: str, at: float = 0.0, **fields: Any) -> Job:
    """A job as it stands so many seconds after it was made."""
    times = {"created_at": NOW, "updated_at": NOW + timedelta(seconds=at)}
    return Job(**{"id": "j1", "model": "a", "source": "code", "state": state, **times, **fields})


class JobsWorker:
    """Answers `ml.finetune`, `ml.jobs.*` and promotions. job: as it stands, or the error that is answered instead.

    duplicate, refusal: what `ml.finetune` answers; promotion: the error that a promotion ends in.
    asked: the requests' subjects and fields.
    """

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.duplicate = False
        self.refusal: MLError | None = None
        self.promotion: MLError | None = None
        self.job: Job | MLError = job("queued")
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._questions = asyncio.Semaphore(0)

    async def on_request(self, msg: Msg) -> None:
        fields = msgpack.unpackb(msg.data)
        self.asked.append((msg.subject, fields))
        answer: Any = self.job
        headers = {names.REQUEST_ID: msg.headers[names.REQUEST_ID]}
        if msg.subject == names.FINETUNE:
            answer = self.refusal or FinetuneReply(job=fields["id"], duplicate=self.duplicate)
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
        if msg.subject == names.JOBS_GET:
            self._questions.release()

    async def publish(self, *jobs: Job) -> None:
        """Say how the job stands, and let it stand as the last one says."""
        for one in jobs:
            self.job = one
            await self.nc.publish(names.job_event_subject(one.id), codec.dumps(one, names.JSON))
        await self.nc.flush()

    async def is_asked(self) -> None:
        """Somebody asks for the job."""
        await asyncio.wait_for(self._questions.acquire(), 20)


@asynccontextmanager
async def scripted_jobs(url: str) -> AsyncIterator[JobsWorker]:
    async with await nats.connect(url, reconnect_time_wait=0.1, max_reconnect_attempts=-1) as nc:
        worker = JobsWorker(nc)
        for subject in (names.FINETUNE, names.JOBS_GET, names.JOBS_LIST, names.JOBS_CANCEL, names.MODELS_PROMOTE):
            await nc.subscribe(subject, "ml", cb=worker.on_request)
        await nc.flush()
        yield worker
