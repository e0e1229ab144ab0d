"""Jobs whose message is not in the queue: the sweep ends them, and no others."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nats
import pytest
from fake_steps import holding
from nats.js import JetStreamContext
from serve_jobs import Events, JobsWorker, jobs_worker

from service.jobs.bucket import NotSetUp
from service.jobs.store import JobStore
from service.jobs.sweep import REASON, Sweep
from subjects import names
from subjects.errors import Unavailable
from subjects.jobs import Job

SOON = timedelta(seconds=1)
WRITTEN: dict[str, Any] = dict.fromkeys(("created_at", "updated_at"), datetime.now(UTC) + timedelta(days=1))
"""By a worker's clock, which changes nothing."""


async def test_a_worker_that_was_killed_before_the_message_leaves_no_job_for_ever(
    client: JobsWorker, events: Events
) -> None:
    await client.store.create(Job(id="lost", model="a", source="code", state="queued", **WRITTEN))
    async with Sweep(client.nc, client.store, SOON).running(every_s=0.1):
        job = await events.until_over("lost")
    assert (job.state, job.reason) == ("failed", REASON)


async def test_a_submission_that_was_never_confirmed_ends(
    client: JobsWorker, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = JetStreamContext.publish

    async def unconfirmed(js: JetStreamContext, subject: str, *arguments: Any, **fields: Any) -> Any:
        if subject == names.job_queue_subject("lost"):
            raise TimeoutError
        return await publish(js, subject, *arguments, **fields)

    monkeypatch.setattr(JetStreamContext, "publish", unconfirmed)
    with pytest.raises(Unavailable, match="ask again with this id"):
        await client.submit("lost")
    async with Sweep(client.nc, client.store, SOON).running(every_s=0.1):
        assert (await events.until_over("lost")).reason == REASON


async def test_one_that_is_sent_again_is_written_anew(client: JobsWorker) -> None:
    await client.submit("one")
    before = await client.store.written_at("one")
    await client.submit("one")
    after = await client.store.written_at("one")
    assert before is not None
    assert after is not None
    assert before < after
    assert await client.store.written_at("nobody") is None


async def test_jobs_that_run_and_wait_stay_until_the_queue_is_purged(
    nats_url: str, tmp_path: Path, client: JobsWorker, events: Events
) -> None:
    client.script.write(train=["hold"])
    async with jobs_worker(nats_url, tmp_path / "data", client.script):
        await client.submit("runs")
        await client.submit("waits")
        await events.until("runs", note=holding("train"))
        at_once = Sweep(client.nc, client.store, timedelta(0))
        await at_once.once()
        assert {job.id: job.state for job in await client.store.list()} == {"runs": "training", "waits": "queued"}
        await client.nc.jetstream().purge_stream(names.JOBS_STREAM)
        await at_once.once()
        for job_id in ("runs", "waits"):
            assert (await events.until_over(job_id)).reason == REASON


async def test_a_lost_job_is_found_behind_others_that_wait(client: JobsWorker, events: Events) -> None:
    """One that trains may stand first in the queue for hours."""
    await client.submit("first")
    await client.store.create(Job(id="lost", model="a", source="code", state="queued", **WRITTEN))
    await client.submit("last")
    await Sweep(client.nc, client.store, timedelta(0)).once()
    assert (await events.until_over("lost")).reason == REASON
    assert {job.id: job.state for job in await client.store.list()} == {
        **dict.fromkeys(("first", "last"), "queued"),
        "lost": "failed",
    }


async def test_without_the_streams_nothing_is_swept(nats_url: str) -> None:
    async with await nats.connect(nats_url) as nc:
        with pytest.raises(NotSetUp):
            await Sweep(nc, JobStore(nc)).once()
