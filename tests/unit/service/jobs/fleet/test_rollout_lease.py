"""One roll-out of a model at a time, on a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import nats
import pytest
from nats.aio.client import Client
from nats.js.kv import KeyValue

from service.jobs import setup
from service.jobs.fleet import rollout_lease
from service.jobs.fleet.rollout_lease import rolling_out
from subjects import names


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url) as client:
        await setup.create(client)
        yield client


@pytest.fixture
async def bucket(nc: Client) -> KeyValue:
    return await nc.jetstream().key_value(names.JOBS_BUCKET)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_lease, "POLL_S", 0.02)
    monkeypatch.setattr(rollout_lease, "RENEW_S", 0.05)


async def passing(nc: Client, job: str | None = None) -> None:
    async with rolling_out(nc, "a", job):
        pass


async def test_all_who_come_at_once_go_one_after_the_other(nc: Client) -> None:
    inside: list[int] = []
    most = 0

    async def one(number: int) -> None:
        nonlocal most
        async with rolling_out(nc, "a", None):
            inside.append(number)
            most = max(most, len(inside))
            async with rolling_out(nc, "b", None):  # of another model
                await nc.flush()
            inside.remove(number)

    await asyncio.gather(*(one(number) for number in range(5)))
    assert most == 1


async def test_it_is_renewed_until_the_end(nc: Client, bucket: KeyValue) -> None:
    watcher = await bucket.watch("rollout.a")
    async with rolling_out(nc, "a", "job"):
        written = 0
        while written < 4:
            if (entry := await watcher.updates(timeout=10)) is not None:  # type: ignore[no-untyped-call]
                written += entry.operation is None
    await watcher.stop()  # type: ignore[no-untyped-call]
    await asyncio.wait_for(passing(nc), 10)


async def test_who_goes_on_with_a_job_takes_it_over(nc: Client, bucket: KeyValue) -> None:
    async with AsyncExitStack() as first:
        await first.enter_async_context(rolling_out(nc, "a", "job"))
        async with rolling_out(nc, "a", "job"):
            await first.aclose()
            waiting = asyncio.create_task(passing(nc, "another"))
            value = (await bucket.get("rollout.a")).value
            assert value is not None
            assert value.startswith(b"job.")
            assert not waiting.done()
        await asyncio.wait_for(waiting, 10)


async def test_a_worker_that_died_holds_it_for_a_while_only(nc: Client, bucket: KeyValue) -> None:
    await bucket.create("rollout.a", b"somebody", msg_ttl=1)
    await asyncio.wait_for(passing(nc), 20)
