"""Tasks that outlive their caller come to an end."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from nats.aio.client import Client

from service.jobs.lease import JobLease
from service.runtime import background
from service.runtime.background import Background
from subjects.jobs import Job


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "CANCEL_AGAIN_S", 0.01)


async def deaf(begun: asyncio.Event) -> None:
    """Waits for ever, and swallows its first cancellation, as nats-py does at times."""
    begun.set()
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again() -> None:
    ours, begun = Background(), asyncio.Event()
    task = ours.spawn(deaf(begun), "deaf")
    await begun.wait()
    await ours.close()
    assert task.cancelled()


async def test_a_job_ends_although_its_progress_swallows_the_cancellation(nats_url: str) -> None:
    """Nobody would have taken another job, in the whole fleet."""

    class Store:
        begun = asyncio.Event()

        async def get(self, _job: str) -> Job:
            return job

        async def change(self, *_: object) -> Job:
            with suppress(asyncio.CancelledError):
                self.begun.set()
                await asyncio.Event().wait()
            return job

    now = datetime.now(UTC)
    job = Job(id="j1", model="minilm", source="x", state="training", origin="request", created_at=now, updated_at=now)
    nc = Client()
    await nc.connect(nats_url)
    try:
        hold = JobLease(Store(), nc, job)  # type: ignore[arg-type]
        async with asyncio.timeout(10), hold.listening():
            hold.progress(step=1)
            await Store.begun.wait()
    finally:
        await nc.close()
