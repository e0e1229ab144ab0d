"""What others can do about a job whose id they do not know, and how much of the queue they can take."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import pytest
from fake_loader import FakeLoader
from fake_steps import Script
from nats.aio.client import Client
from serve_jobs import Events, JobsWorker, jobs_worker, listening, set_up
from trained_versions import serve, trained
from workers import running_worker

from models.weights.versions import keep
from service.endpoint.endpoint import Endpoint, serving
from service.endpoint.in_flight import InFlight, Limits
from service.endpoint.reply_subject import ReplySubjects
from service.handlers.finetune import FinetuneHandlers
from service.jobs import setup
from service.jobs.objects import Objects
from service.jobs.store import JobStore
from service.jobs.uploads import Uploads
from service.jobs.watch import JobWatch
from service.telemetry import Telemetry
from subjects import MLClient, names, stream
from subjects.errors import Busy, NotFound, NotServed
from subjects.finetune import FinetuneRequest
from subjects.jobs import Job


@pytest.fixture
async def events(nats_url: str) -> AsyncIterator[Events]:
    await set_up(nats_url, jobs=setup.MAX_JOBS)
    async with listening(nats_url) as heard:
        yield heard


@asynccontextmanager
async def answering(worker: JobsWorker, watches: int = 10) -> AsyncIterator[tuple[Endpoint, Client]]:
    """An endpoint with the routes of jobs, which drains at the end, and a client of it."""
    watch = JobWatch(worker.nc, worker.store, poll_s=0.1)
    uploads = Uploads(Objects(worker.nc, names.DATA_BUCKET))
    replies = ReplySubjects(worker.settings.reply_prefixes)
    endpoint = Endpoint(
        nc=worker.nc,
        worker_id="w1",
        handlers=FinetuneHandlers(worker.submission, worker.store, watch, uploads, replies.user).handlers(),
        in_flight=InFlight(Limits(requests=10, request_bytes=2**24, default_timeout_s=10, watches=watches)),
        telemetry=Telemetry(),
        metadata=dict,
        data=dict,
        replies=replies,
    )
    async with await nats.connect(worker.settings.nats_url) as nc, serving(endpoint, 20):
        yield endpoint, nc


def of(worker: JobsWorker, job_id: str | None = None) -> FinetuneRequest:
    return FinetuneRequest(id=job_id, model="a", path=str(worker.settings.finetune.roots[0]))


async def waiting(worker: JobsWorker) -> int:
    """How many messages are in the queue."""
    return (await worker.nc.jetstream().stream_info(names.JOBS_STREAM)).state.messages


# Who knows an id


async def test_a_job_without_an_id_of_its_own_gets_one_that_nobody_guesses(client: JobsWorker) -> None:
    first, second = [(await client.submission.submit(of(client))).job for _ in range(2)]
    assert len(bytes.fromhex(first)) == len(bytes.fromhex(second)) == 16
    assert first[:8] != second[:8]  # as the ids of one process would begin that count up


async def test_the_nightly_job_is_the_same_for_all_workers_and_cannot_be_taken_before(
    client: JobsWorker, nats_url: str
) -> None:
    name = "nightly-2026-06-01-a"
    squatted = (await client.submission.submit(of(client, name))).job
    first = await client.submission.submit(of(client, name), "nightly")
    again = await client.submission.submit(of(client, name), "nightly")
    assert (squatted, first.duplicate, again.duplicate) == (name, False, True)
    assert first.job == again.job
    assert first.job.removeprefix(f"{name}-") not in (first.job, "")
    async with await nats.connect(nats_url) as nc:
        store = JobStore(nc)
        assert await store.secret_id(name) == first.job
        assert await store.secret_id("nightly-2026-06-02-a") != first.job


async def test_an_id_that_is_not_there_is_refused_the_same_for_all_questions(client: JobsWorker) -> None:
    async with answering(client) as (_, nc):
        ml = MLClient(nc, timeout_s=10)
        for question in (ml.jobs.get("guess"), ml.jobs.cancel("guess"), anext(ml.jobs.watch("guess"))):
            with pytest.raises(NotFound, match="there is no job 'guess'"):
                await question


async def test_nobody_is_told_which_job_made_a_version(nats_url: str, tmp_path: Path) -> None:
    """While its version goes live, who knew the id could cancel the administrator's promotion."""
    data_dir = tmp_path / "var"
    version = trained(tmp_path / "run", day=7, accepted=True)
    keep(tmp_path / "run", data_dir / "checkpoints", "mine", version)
    serve(data_dir / "checkpoints", "mine", version)
    catalogue = {"mine": {"kind": "embedding", "folder": "weights"}}
    async with (
        running_worker(nats_url, loader=FakeLoader(), catalogue=catalogue, data_dir=data_dir, models=("mine",)),
        await nats.connect(nats_url) as nc,
    ):
        for subject in (names.MODELS_INFO, names.MODELS_LIST, "$SRV.INFO.ml", "$SRV.STATS.ml"):
            told = (await nc.request(subject, b"mine" * (subject == names.MODELS_INFO), timeout=20)).data.decode()
            assert "mine" in told or "ml" in told
            assert "job-7" not in told


# Watching


async def test_a_watch_tells_each_state_by_frames_until_the_job_is_over(client: JobsWorker) -> None:
    await client.submit("mine")
    async with answering(client) as (_, nc):
        inbox = nc.new_inbox()
        frames = await nc.subscribe(inbox)
        await nc.publish(names.JOBS_WATCH, b"mine", reply=inbox)
        told = [await frames.next_msg(10)]
        for state in ("training", "done"):
            await client.store.change("mine", state=state)
            told.append(await frames.next_msg(10))
        assert [json.loads(one.data)["state"] for one in told] == ["queued", "training", "done"]
        assert [one.headers[names.EVENT] for one in told] == [stream.JOB, stream.JOB, stream.DONE]
        assert [one.headers[names.SEQ] for one in told] == ["0", "1", "2"]
        sentinel = await frames.next_msg(10)
        assert (sentinel.data, sentinel.headers) == (b"", None)


async def test_a_watch_hears_what_no_event_told_and_no_forged_event(client: JobsWorker) -> None:
    await client.submit("mine")
    async with answering(client) as (_, nc):
        watched = MLClient(nc).jobs.watch("mine")
        waits = await anext(watched)
        forged = waits.model_copy(update={"state": "done", "version": "forged"})
        await nc.publish(names.job_event_subject("mine"), forged.model_dump_json().encode())
        silent = waits.model_copy(update={"notes": ["written without an event"]})
        await (await client.store.bucket()).put("job.mine", silent.model_dump_json().encode())
        assert (await anext(watched)).notes == ["written without an event"]
        await watched.aclose()


async def test_a_watch_has_no_deadline_pings_and_is_no_service_time(client: JobsWorker) -> None:
    await client.submit("mine")
    async with answering(client) as (endpoint, nc):
        before = endpoint.in_flight.service_s
        inbox = nc.new_inbox()
        frames = await nc.subscribe(inbox)
        headers = {names.TIMEOUT_MS: "1", names.PING_MS: "100", names.REQUEST_ID: "w"}
        began = time.monotonic()
        await nc.publish(names.JOBS_WATCH, b"mine", reply=inbox, headers=headers)
        heard = [await frames.next_msg(10) for _ in range(3)]
        assert [one.headers[names.EVENT] for one in heard] == [stream.JOB, *[stream.PING] * 2]
        assert time.monotonic() - began > 1.5  # a second for each, however many are asked for
        await nc.publish(names.cancel_subject("w"))
        while (last := await frames.next_msg(10)).headers[names.EVENT] == stream.PING:
            pass
        assert last.headers[names.ERROR_CODE] == "499"
        await client.submission.cancel("mine")
        assert [one.state async for one in MLClient(nc).jobs.watch("mine")] == ["cancelled"]
        assert endpoint.in_flight.service_s == before


async def test_watches_are_bounded_in_number_and_take_no_places_of_others(client: JobsWorker) -> None:
    await client.submit("mine")
    async with answering(client, watches=8) as (_, nc):
        ml = MLClient(nc)
        two = [ml.jobs.watch("mine") for _ in range(2)]
        for watched in two:
            await anext(watched)
        with pytest.raises(Busy):
            await anext(MLClient(nc, retries=0).jobs.watch("mine"))
        assert (await ml.jobs.get("mine")).state == "queued"
        for watched in two:
            await watched.aclose()
        await anext(ml.jobs.watch("mine"))


async def test_a_watch_ends_where_the_bucket_has_gone(client: JobsWorker) -> None:
    """Also where the worker, or the client, waits for a server that is away."""
    await client.submit("mine")
    async with answering(client) as (_, nc):
        watched = MLClient(nc).jobs.watch("mine")
        assert (await anext(watched)).state == "queued"
        await nc.jetstream().delete_key_value(names.JOBS_BUCKET)
        with pytest.raises(NotServed, match="mlbus admin init"):
            await asyncio.wait_for(anext(watched), 20)


async def test_one_users_watches_leave_room_for_the_others(client: JobsWorker) -> None:
    """What the server does not tell apart is one: inboxes that callers choose, and all that is below ml.watch."""
    await client.submit("mine")

    async def watch(inbox: str, caller: str = "") -> str:
        """The first frame's event, or the code of the error that comes instead."""
        frames = await nc.subscribe(inbox)
        headers = {names.CALLER: caller} if caller else {}
        await nc.publish(names.JOBS_WATCH, b"mine", reply=inbox, headers=headers)
        told = (await frames.next_msg(10)).headers
        return told.get(names.ERROR_CODE) or told[names.EVENT]

    async with answering(client, watches=8) as (_, nc):
        await nc.subscribe("_INBOX_ml.me.caller")
        greedy = [f"_INBOX_ml.me.{number}" for number in range(3)]
        assert [await watch(inbox) for inbox in greedy] == ["job", "job", "429"]
        assert await watch("_INBOX_ml.other.x", "_INBOX_ml.me.caller") == "429"  # that is who is asked
        assert [await watch(f"_INBOX.{number}.x") for number in range(3)] == ["job", "job", "429"]
        assert [await watch(f"ml.watch.{number}") for number in range(3)] == ["job", "job", "429"]
        assert [await watch(f"_INBOX_ml.other.{number}") for number in range(2)] == ["job", "job"]
        assert await watch("_INBOX_ml.third.x") == "429"


async def test_whoever_is_gone_ends_the_watch(client: JobsWorker) -> None:
    await client.submit("mine")
    async with answering(client) as (endpoint, nc):
        async with await nats.connect(client.settings.nats_url) as other:
            inbox = other.new_inbox()
            frames = await other.subscribe(inbox)
            await other.publish(names.JOBS_WATCH, b"mine", reply=inbox, headers={names.PING_MS: "100"})
            await frames.next_msg(10)
            (call,) = endpoint.in_flight.calls.values()
        assert call.task is not None
        await asyncio.wait_for(call.task, 20)
        assert nc.is_connected


async def test_a_drain_ends_a_watch_at_once_and_the_client_goes_on_elsewhere(client: JobsWorker) -> None:
    await client.submit("mine")
    async with await nats.connect(client.settings.nats_url) as nc:
        watched = MLClient(nc).jobs.watch("mine")
        async with answering(client):
            assert (await anext(watched)).state == "queued"
            went_on = asyncio.create_task(anext(watched))
        # drained long before its grace of 20 seconds, or the test would have timed out
        await client.submission.cancel("mine")
        async with answering(client):
            assert (await asyncio.wait_for(went_on, 10)).state == "cancelled"


# The queue


async def test_so_many_jobs_wait_and_no_more(client: JobsWorker) -> None:
    ids = [(await client.submission.submit(of(client))).job for _ in range(setup.MAX_REQUESTED)]
    with pytest.raises(Busy) as refused:
        await client.submission.submit(of(client))
    assert refused.value.retry_after_ms
    assert (await client.submission.submit(of(client, ids[1]))).duplicate
    await client.submission.cancel(ids[0])
    await client.submission.submit(of(client))


async def test_the_nightly_run_has_a_place_that_callers_cannot_take_by_many_workers_at_once(
    nats_url: str, tmp_path: Path, script: Script, client: JobsWorker
) -> None:
    async with jobs_worker(nats_url, tmp_path / "data", script, "w2", takes_jobs=False) as other:
        asked = [worker.submission.submit(of(worker)) for _ in range(setup.MAX_JOBS) for worker in (client, other)]
        ends = await asyncio.gather(*asked, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(end, Busy) for end in refused)
    assert len(ends) - len(refused) == await waiting(client) == setup.MAX_REQUESTED
    assert len(await client.store.list()) == setup.MAX_REQUESTED
    nightly = await client.submission.submit(of(client, "nightly-2026-06-01-a"), "nightly")
    assert (nightly.duplicate, await waiting(client)) == (False, setup.MAX_JOBS)
    with pytest.raises(Busy):
        await client.submission.submit(of(client, "nightly-2026-06-01-b"), "nightly")


async def test_cancelled_jobs_leave_the_queue_at_once(client: JobsWorker) -> None:
    ids = [(await client.submission.submit(of(client))).job for _ in range(20)]
    kept = ids.pop(10)
    async with answering(client) as (_, nc):
        for job_id in ids:
            assert (await MLClient(nc).jobs.cancel(job_id)).state == "cancelled"
    assert await waiting(client) == 1
    queue = await client.nc.jetstream().pull_subscribe_bind(setup.CONSUMER, stream=names.JOBS_STREAM)
    (left,) = await queue.fetch(1, timeout=5)
    assert left.subject == names.job_queue_subject(kept)


async def test_one_that_is_to_be_begun_again_leaves_the_queue_too(client: JobsWorker) -> None:
    """Its message has been delivered, and would be again."""
    js = client.nc.jetstream()
    for job_id in ("crashed", "next"):
        await client.submit(job_id)
    queue = await js.pull_subscribe_bind(setup.CONSUMER, stream=names.JOBS_STREAM)
    (delivered,) = await queue.fetch(1, timeout=5)
    await delivered.nak(delay=600)
    await client.submission.cancel("crashed")
    (other,) = await queue.fetch(1, timeout=10)
    assert other.subject == names.job_queue_subject("next")


async def test_jobs_that_never_began_push_none_out_of_memory_that_did(nats_url: str, events: Events) -> None:
    async with await nats.connect(nats_url) as nc:
        store, at = JobStore(nc, kept=2), datetime.now(UTC)

        def job(job_id: str, **fields: Any) -> Job:
            return Job(id=job_id, model="a", source="code", created_at=at, updated_at=at, **fields)

        await store.create(job("done", state="done", attempt=1))
        for number in range(60):
            await store.create(job(f"flood{number}", state="queued"))
            await store.request_cancel(f"flood{number}")
        left = {each.id for each in await store.list()}
        assert "done" in left
        assert len(left) < 60
