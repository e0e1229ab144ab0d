"""A worker that does jobs with scripted steps, in this event loop or as `python serve_jobs.py URL DATA SCRIPT WORKER`.

As a process it prints `ready` once it takes jobs.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nats
from fake_steps import Script, holding
from nats.aio.client import Client
from workers import clean_environment

from models.catalogue import ModelSpec, load_catalogue
from models.errors import OverBudget
from models.training.errors import CannotTrain
from models.training.run import TrainingOptions
from service.bus.client import BusClient
from service.bus.connection import settled
from service.endpoint.endpoint import Endpoint, serving
from service.endpoint.in_flight import InFlight, Limits
from service.endpoint.reply_subject import ReplySubjects
from service.handlers.finetune import FinetuneHandlers
from service.jobs import setup, step_process
from service.jobs.fleet.rollout import RolledBack
from service.jobs.objects import Objects
from service.jobs.queue import JobQueue, QueueTimes
from service.jobs.runner import JobRunner
from service.jobs.runs import Runs
from service.jobs.stages import Stages
from service.jobs.step_process import Steps
from service.jobs.store import JobStore
from service.jobs.submission import Submission
from service.jobs.uploads import Uploads
from service.jobs.watch import JobWatch
from service.settings import Settings
from service.telemetry import Telemetry, configured_tracer
from subjects import names
from subjects.finetune import FinetuneRequest
from subjects.jobs import TERMINAL, Job
from subjects.names import JobState

GB = 10**9
ACK_WAIT_S = 2.0
PACE = QueueTimes(heartbeat_s=0.5, fetch_s=1.0, retry_s=0.1, setup_s=0.1)


async def set_up(url: str, jobs: int = 100) -> None:
    """What `mlbus admin init` makes, but less patient; jobs: how many the queue holds."""
    async with await nats.connect(url) as nc:
        await setup.create(nc)
        js = nc.jetstream()
        queue = await js.stream_info(names.JOBS_STREAM)
        await js.update_stream(queue.config.evolve(max_msgs=jobs))
        consumer = await js.consumer_info(names.JOBS_STREAM, setup.CONSUMER)
        await js.add_consumer(names.JOBS_STREAM, consumer.config.evolve(ack_wait=ACK_WAIT_S))


def settings_of(url: str, data: Path) -> Settings:
    """Two models to train and one that generates; code lies in `code`."""
    weights = data.parent / "weights"
    weights.mkdir(parents=True, exist_ok=True)
    catalogue: dict[str, dict[str, Any]] = {
        "a": {"kind": "embedding", "folder": str(weights)},
        "b": {"kind": "embedding", "folder": str(weights)},
        "onnx_only": {"kind": "embedding", "folder": str(weights)},
        "absent": {"kind": "embedding", "folder": str(data.parent / "nowhere")},
    }
    (data.parent / "code").mkdir(exist_ok=True)
    roots = (data.parent / "code",)
    return Settings(nats_url=url, data_dir=data, catalogue=catalogue, finetune={"roots": roots})


@dataclass
class FakeRoom:
    """Memory that is granted once `gate` is set. taken: what was set aside."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    taken: list[tuple[str, str, int]] = field(default_factory=list)
    failure: Exception | None = None

    @asynccontextmanager
    async def reserve(self, name: str, device: str, memory_bytes: int) -> AsyncIterator[Callable[[int], None]]:
        await self.gate.wait()
        fits = isinstance(self.failure, OverBudget) and memory_bytes <= self.failure.budget - self.failure.in_use
        if self.failure and not fits:
            raise self.failure
        self.taken.append((name, device, memory_bytes))
        yield lambda resized: self.taken.append((name, device, resized))


class FakeSwap:
    """live: the versions that went live, by model; offered: those that were sent to the other workers.

    while_offered: what happens meanwhile.
    """

    def __init__(self, nc: Client, script: Script) -> None:
        self.live: dict[str, str] = {}
        self.offered: list[str] = []
        self.while_offered: Callable[[], Awaitable[object]] = functools.partial(asyncio.sleep, 0)
        self._nc = nc
        self._script = script

    async def offer(self, model: str, version: str) -> list[str]:
        self.offered.append(version)
        await self.while_offered()
        return []

    async def go_live(self, model: str, version: str, job: str, parent: str | None) -> list[str]:
        match self._script.next("swap"):
            case "hold":
                await self._nc.publish("test.holding", holding("swap").encode())
                await asyncio.Event().wait()
            case "roll back":
                raise RolledBack(f"version {version} was rolled back: a live round did not match")
        self.live[model] = version
        return []

    async def abandon(self, model: str, job: str) -> None:
        """Nothing that is cut off here has gone live."""


@dataclass
class JobsWorker:
    nc: Client
    settings: Settings
    store: JobStore
    submission: Submission
    room: FakeRoom
    swap: FakeSwap
    script: Script

    async def submit(self, job_id: str, model: str = "a", *, promote: bool = False, **fields: Any) -> None:
        """promote: what comes of it is to serve."""
        fields = fields or {"path": str(self.settings.finetune.roots[0])}
        await self.submission.submit(FinetuneRequest(id=job_id, model=model, **fields))
        if promote:
            await self.store.request_promotion(job_id)

    def run_folder(self, job_id: str) -> Path:
        return self.settings.runs_dir / job_id


def needs(entry: ModelSpec, base: Path, options: TrainingOptions) -> tuple[str, int]:
    return "cpu", 3 * GB


def check_trainable(entry: ModelSpec, base: Path) -> None:
    if entry.id == "onnx_only":
        raise CannotTrain(entry.id, "it has no torch weights")


@asynccontextmanager
async def jobs_worker(
    url: str, data: Path, script: Script, worker: str = "w1", *, takes_jobs: bool = True, inbox_prefix: str = "_INBOX"
) -> AsyncIterator[JobsWorker]:
    """A worker that takes jobs, or only lets them be submitted."""
    nc = BusClient()
    await nc.connect(url, reconnect_time_wait=0.1, max_reconnect_attempts=-1, inbox_prefix=inbox_prefix)
    settings = settings_of(url, data)
    catalogue = load_catalogue(settings.catalogue)
    store, room, swap = JobStore(nc), FakeRoom(), FakeSwap(nc, script)
    room.gate.set()
    submission = Submission(nc, store, catalogue, {"embedding": "a"}, settings, check_trainable)
    runs = Runs(settings, nc, needs, threads=1)
    steps = Steps(1, script.command)
    stages = Stages(store, catalogue, settings.checkpoints_dir, runs, steps, room, swap)
    pipeline = JobRunner(nc, store, stages, worker, attempts=3)
    made = JobsWorker(nc, settings, store, submission, room, swap, script)
    try:
        if takes_jobs:
            # Steps at the lowest priority would wait for whatever else the tests' machine does.
            with patch.object(step_process, "lower_priority"):
                async with JobQueue(nc, store, PACE).running(pipeline.handle):
                    yield made
        else:
            yield made
    finally:
        await nc.close()


@asynccontextmanager
async def answering(worker: JobsWorker) -> AsyncIterator[Client]:
    """A client of an endpoint with the routes of jobs."""
    uploads = Uploads(Objects(worker.nc, names.DATA_BUCKET))
    replies, watch = ReplySubjects(worker.settings.reply_prefixes), JobWatch(worker.nc, worker.store)
    handlers = FinetuneHandlers(worker.submission, worker.store, watch, uploads, replies.user).handlers()
    in_flight = InFlight(Limits(requests=10, request_bytes=2**24, default_timeout_s=10))
    endpoint = Endpoint(worker.nc, "w1", handlers, in_flight, Telemetry(configured_tracer()), dict, dict, replies)
    async with serving(endpoint, 1), await nats.connect(worker.settings.nats_url) as nc:
        yield nc


async def asked(nc: Client, subject: str, body: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads((await nc.request(subject, body.encode(), timeout=10)).data)
    return answer


class Events:
    """What is heard of all jobs."""

    def __init__(self) -> None:
        self.heard: list[Job] = []
        self._news = asyncio.Condition()

    async def on_event(self, msg: Any) -> None:
        async with self._news:
            self.heard.append(Job.model_validate_json(msg.data))
            self._news.notify_all()

    async def until(self, job_id: str, *states: JobState, note: str | None = None, timeout_s: float = 60) -> Job:
        """The first event of a job in one of these states, or with this note."""

        def found() -> Job | None:
            of_it = (job for job in self.heard if job.id == job_id)
            return next((job for job in of_it if job.state in states or note in job.notes), None)

        async with asyncio.timeout(timeout_s), self._news:
            await self._news.wait_for(lambda: found() is not None)
        job = found()
        assert job is not None
        return job

    async def until_over(self, job_id: str, timeout_s: float = 60) -> Job:
        return await self.until(job_id, *TERMINAL, timeout_s=timeout_s)

    def states(self, job_id: str) -> list[JobState]:
        """The states that a job went through, each once in a row."""
        states = [job.state for job in self.heard if job.id == job_id]
        return [state for at, state in enumerate(states) if at == 0 or state != states[at - 1]]


@asynccontextmanager
async def listening(url: str) -> AsyncIterator[Events]:
    events = Events()
    nc = await nats.connect(url, reconnect_time_wait=0.1, max_reconnect_attempts=-1)
    await nc.subscribe(names.job_event_subject("*"), cb=events.on_event)
    await settled(nc)
    try:
        yield events
    finally:
        await nc.close()


async def jobs_process(url: str, data: Path, script: Script, worker: str) -> Process:
    """Start this file and wait until it takes jobs."""
    arguments = (url, str(data), str(script.folder), worker)
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *arguments, env=clean_environment(), stdout=PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


async def main(url: str, data: str, script: str, worker: str) -> None:
    async with jobs_worker(url, Path(data), Script(Path(script)), worker):
        print("ready", flush=True)  # noqa: T201
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
