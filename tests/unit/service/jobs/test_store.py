"""The jobs' states over a real bucket: changed by several at once, listed, ended for good, forgotten."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import nats
import pytest
from nats.aio.client import Client

from service.jobs import store as module
from service.jobs.store import JobStore
from subjects import names
from subjects.errors import NotFound
from subjects.jobs import Job
from subjects.names import JobState

DAY = datetime(2020, 1, 1, tzinfo=UTC)


def job(job_id: str, state: JobState = "queued", model: str = "a", minute: int = 0) -> Job:
    at = DAY + timedelta(minutes=minute)
    return Job(id=job_id, model=model, source="code", state=state, created_at=at, updated_at=at)


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url) as client:
        await client.jetstream().create_key_value(bucket=names.JOBS_BUCKET)
        yield client


@pytest.fixture
def store(nc: Client) -> JobStore:
    return JobStore(nc)


async def test_job_is_created_once(store: JobStore) -> None:
    assert await store.create(job("one"))
    assert not await store.create(job("one", model="b"))
    assert await store.get("one") == job("one")
    assert await store.get("two") is None


async def test_removed_job_may_be_created_again(store: JobStore) -> None:
    await store.create(job("one"))
    await store.remove("one")
    assert await store.get("one") is None
    assert await store.list() == []
    assert await store.create(job("one", model="b"))
    assert [found.model for found in await store.list()] == ["b"]


async def test_changes_at_the_same_time_are_all_kept(store: JobStore) -> None:
    await store.create(job("one"))

    def noted(number: int) -> module.Changing:
        return lambda job: job.model_copy(update={"notes": [*job.notes, str(number)]})

    await asyncio.gather(*(store.change("one", noted(number)) for number in range(8)))
    found = await store.get("one")
    assert found is not None
    assert sorted(found.notes) == sorted(map(str, range(8)))


async def test_each_change_is_published_and_no_change_is_not(nc: Client, store: JobStore) -> None:
    heard = await nc.subscribe(names.job_event_subject("*"))
    await store.create(job("one"))
    await store.change("one", state="training", step=1)
    await store.change("one", step=1)
    await store.change("one", step=2)
    events = [Job.model_validate_json((await heard.next_msg(5)).data) for _ in range(3)]
    assert [(event.state, event.step) for event in events] == [("queued", None), ("training", 1), ("training", 2)]
    assert heard.pending_msgs == 0


@pytest.mark.parametrize("state", ["done", "failed", "cancelled", "rejected", "skipped"])
async def test_job_that_is_over_stays_as_it_is(store: JobStore, state: JobState) -> None:
    await store.create(job("one", state))
    assert await store.change("one", state="training") == job("one", state)
    assert await store.request_cancel("one") == job("one", state)


async def test_cancel_ends_what_waits_and_asks_what_runs(store: JobStore) -> None:
    await store.create(job("waits"))
    await store.create(job("runs", "training"))
    assert (await store.request_cancel("waits")).state == "cancelled"
    asked = await store.request_cancel("runs")
    assert (asked.state, asked.cancel_requested) == ("training", True)
    with pytest.raises(NotFound, match="no job 'nobody'"):
        await store.request_cancel("nobody")


async def test_list_is_newest_first_filtered_and_cut(nc: Client, store: JobStore) -> None:
    for minute, (job_id, state, model) in enumerate([("x", "done", "a"), ("y", "queued", "b"), ("z", "done", "b")]):
        await store.create(job(job_id, state, model, minute))  # type: ignore[arg-type]
    await (await store.bucket()).put("job.spoilt", b"\xff")
    await (await store.bucket()).put("live.a", b"{}")
    assert [found.id for found in await store.list()] == ["z", "y", "x"]
    assert [found.id for found in await store.list(state="done")] == ["z", "x"]
    assert [found.id for found in await store.list(model="b", limit=1)] == ["z"]
    assert [found.id for found in await store.list(model="b", before="z")] == ["y"]
    assert await store.list(model="c") == []
    with pytest.raises(NotFound, match="begin with the newest"):
        await store.list(before="gone")


async def test_a_list_never_misses_a_job_that_changes_meanwhile(store: JobStore) -> None:
    ids = {f"job{number}" for number in range(40)}
    for job_id in ids:
        await store.create(job(job_id, "training"))

    listed = asyncio.Event()

    async def working(job_id: str) -> None:  # nats-py swallows a cancellation at times
        for step in itertools.takewhile(lambda _: not listed.is_set(), itertools.count(1)):
            await store.change(job_id, step=step)

    async with asyncio.TaskGroup() as workers:
        for job_id in ids:
            workers.create_task(working(job_id))
        found = [{each.id for each in await store.list()} for _ in range(10)]
        listed.set()
    assert found == [ids] * 10


async def test_a_thousand_jobs_are_listed_within_a_second(store: JobStore) -> None:
    bucket = await store.bucket()
    for at in range(0, 1000, 100):
        waiting = (job(f"job{number}", "done", minute=number) for number in range(at, at + 100))
        await asyncio.gather(*(bucket.put(f"job.{each.id}", each.model_dump_json().encode()) for each in waiting))
    began = time.perf_counter()
    found = await store.list(limit=2)
    assert time.perf_counter() - began < 1
    assert [each.id for each in found] == ["job999", "job998"]


async def test_old_jobs_that_are_over_are_forgotten_and_leave_nothing(nc: Client) -> None:
    store = JobStore(nc, kept=2)
    await store.create(job("waits"))
    for number in range(4):
        await store.create(job(f"old{number}", "done", minute=number))
    await store.create(job("last", "training"))
    await store.change("last", state="done")
    assert {found.id for found in await store.list()} == {"waits", "last", "old3"}


async def test_what_was_trained_on_is_known_by_model_and_codebase(store: JobStore) -> None:
    assert await store.trained_on("a", "/srv/code") is None
    await store.note_trained("a", "/srv/code", "digest")
    assert await store.trained_on("a", "/srv/code") == "digest"
    assert await store.trained_on("a", "/srv/other") is None
    assert await store.trained_on("b", "/srv/code") is None
