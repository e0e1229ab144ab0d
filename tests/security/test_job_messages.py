"""Somebody who finds out where workers take jobs still cannot give them one: a plain server, where all may publish."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import nats
import pytest
from fake_steps import Script, holding
from nats.aio.client import Client
from nats_server import plain_server
from serve_jobs import Events, JobsWorker, jobs_worker, listening, set_up

from service.bus.connection import settled
from service.jobs import setup
from subjects import names
from subjects.jobs import Job

PULLS = f"$JS.API.CONSUMER.MSG.NEXT.{names.JOBS_STREAM}.{setup.CONSUMER}"


@pytest.fixture
async def pull_inbox(nats_url: str, events: Events, attacker: Client) -> "asyncio.Queue[str]":
    """Where the worker's next pulls want their job, as whoever may watch JetStream's subjects sees it."""
    inboxes: asyncio.Queue[str] = asyncio.Queue()

    async def note(msg: nats.aio.msg.Msg) -> None:
        inboxes.put_nowait(msg.reply)

    await attacker.subscribe(PULLS, cb=note)
    await settled(attacker)
    return inboxes


@pytest.fixture
async def worker(
    nats_url: str, tmp_path: Path, events: Events, pull_inbox: "asyncio.Queue[str]"
) -> AsyncIterator[JobsWorker]:
    async with jobs_worker(nats_url, tmp_path / "data", Script(tmp_path / "script").write()) as running:
        yield running


def forged(worker: JobsWorker, job_id: str, model: str = "b") -> bytes:
    """A request of the attacker's for a job that waits."""
    path = worker.settings.finetune.roots[0]
    return f'{{"id":"{job_id}","model":"{model}","path":"{path}","options":{{"epochs":99}}}}'.encode()


async def waiting(worker: JobsWorker, job_id: str, body: bytes) -> None:
    """A job whose key has the hash of this body, and whose message is not in the queue."""
    now, digest = datetime.now(UTC), hashlib.sha256(body).hexdigest()
    times = {"created_at": now, "updated_at": now}
    await worker.store.create(Job(id=job_id, model="b", source="code", state="queued", digest=digest, **times))


NOT_THE_STREAMS = [
    "",
    "elsewhere.x",
    "$JS.ACK.ML_JOBS.workers.1.999.1.1.0",  # a sequence that the stream never gave out
    "$JS.ACK.ML_JOBS.workers.1.0.0.1.0",
    "$JS.ACK.OTHERS.workers.1.1.1.1.0",
    "$JS.ACK.ML_JOBS.workers.x.y.1.1.0",
    "$JS.ACK._.account.ML_JOBS.workers.1.999.1.1.0",
    "$JS.ACK._.account.ML_JOBS.workers.1",
]


async def test_what_does_not_come_from_the_stream_is_no_job(
    attacker: Client, worker: JobsWorker, events: Events, pull_inbox: "asyncio.Queue[str]"
) -> None:
    body = forged(worker, "forged")
    await waiting(worker, "forged", body)
    answers = await attacker.subscribe("elsewhere.>")
    inbox = await pull_inbox.get()
    for reply in NOT_THE_STREAMS:
        await attacker.publish(inbox, body, reply=reply)
    await attacker.flush()
    await worker.submit("one")
    assert (await events.until_over("one")).state == "done"
    assert events.states("forged") == ["queued"]
    assert answers.pending_msgs == 0  # nor does a word of ours go where the attacker said


async def test_what_comes_from_the_stream_of_a_later_server_is_a_job(tmp_path: Path) -> None:
    """Its acknowledgements carry domain and account (ADR-15)."""
    conf = tmp_path / "later.conf"
    conf.write_text("feature_flags { js_ack_fc_v2: true }\n")
    server = plain_server(tmp_path / "nats", "-c", str(conf))
    try:
        await set_up(server.start().url)
        script = Script(tmp_path / "script").write()
        async with listening(server.url) as events, jobs_worker(server.url, tmp_path / "data", script) as worker:
            await worker.submit("one")
            assert (await events.until_over("one")).state == "done"
    finally:
        server.stop()


async def test_an_inbox_does_not_tell_the_next(attacker: Client, worker: JobsWorker) -> None:
    """nats-py counts upwards from one inbox to the next."""
    ours = [worker.nc.new_inbox() for _ in range(100)]
    assert len({inbox[: len("_INBOX.") + 12] for inbox in ours}) == 100


class TestTheQueue:
    """Who may publish to the queue itself: a job is what its key says."""

    async def test_another_request_for_a_job_that_waits_is_dropped(
        self, attacker: Client, worker: JobsWorker, events: Events
    ) -> None:
        worker.script.write(collect=["hold"])
        await worker.submit("first")
        await events.until("first", note=holding("collect"))
        await waiting(worker, "theirs", b"what was asked for")
        await attacker.jetstream().publish(names.job_queue_subject("theirs"), forged(worker, "theirs"))
        await worker.store.request_cancel("first")
        await worker.submit("last")
        assert (await events.until_over("last")).state == "done"
        assert events.states("theirs") == ["queued"]

    async def test_the_same_id_does_not_replace_what_was_asked_for(
        self, nats_url: str, tmp_path: Path, events: Events
    ) -> None:
        script = Script(tmp_path / "script").write()
        async with jobs_worker(nats_url, tmp_path / "data", script, takes_jobs=False) as client:
            await waiting(client, "theirs", b"what was asked for")
            await client.submit("theirs")  # another request: the first one's message has not come through
            assert (await client.nc.jetstream().stream_info(names.JOBS_STREAM)).state.messages == 0
