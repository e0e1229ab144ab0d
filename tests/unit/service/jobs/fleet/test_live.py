"""The live versions on a real server: set by compare-and-set, and watched through everything."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime

import pytest
from nats.aio.client import Client
from nats_server import NatsServer

from service.bus.connection import connected
from service.bus.settings import NatsSettings
from service.jobs import setup
from service.jobs.bucket import NotSetUp
from service.jobs.fleet.live import Live, LiveVersions
from service.jobs.retry import retry_while_down
from subjects import names


def live(version: str) -> Live:
    return Live(version=version, at=datetime(2026, 1, 1, tzinfo=UTC), job="job")


@pytest.fixture
async def nc(nats_server: NatsServer) -> AsyncIterator[Client]:
    settings = NatsSettings(url=nats_server.url, reconnect_wait_s=0.1)
    async with connected(settings) as client:
        yield client


@pytest.fixture
async def versions(nc: Client) -> LiveVersions:
    await setup.create(nc)
    return LiveVersions(nc, tick_s=0.2)


async def test_nothing_is_live_before_it_is_named(versions: LiveVersions) -> None:
    assert await versions.get("minilm") is None
    assert await versions.all() == {}


async def test_a_change_sees_what_was_there(versions: LiveVersions) -> None:
    assert await versions.change("minilm", lambda before: live("v1") if before is None else None) == live("v1")
    seen: list[Live | None] = []

    def changing(before: Live | None) -> Live:
        seen.append(before)
        return live("v2")

    assert await versions.change("minilm", changing) == live("v2")
    assert seen == [live("v1")]
    assert await versions.all() == {"minilm": live("v2")}


async def test_a_change_that_changes_nothing_writes_nothing(nc: Client, versions: LiveVersions) -> None:
    await versions.change("minilm", lambda _: live("v1"))
    assert await versions.change("minilm", lambda before: before) == live("v1")
    assert await versions.change("minilm", lambda _: None) == live("v1")
    assert (await nc.jetstream().stream_info("KV_ml_jobs")).state.last_seq == 1


async def test_of_many_changes_at_once_none_is_lost(versions: LiveVersions) -> None:
    def one_more(before: Live | None) -> Live:
        return live(f"v{int(before.version[1:]) + 1 if before else 1}")

    await asyncio.gather(*(versions.change("minilm", one_more) for _ in range(12)))
    assert (await versions.all())["minilm"].version == "v12"


async def test_a_listing_never_misses_a_model_that_changes_meanwhile(versions: LiveVersions) -> None:
    models, listed = {f"model{number}" for number in range(10)}, asyncio.Event()

    async def swapping(model: str) -> None:  # nats-py swallows a cancellation at times
        for number in itertools.takewhile(lambda _: not listed.is_set(), itertools.count(1)):
            await versions.change(model, lambda _, version=f"v{number}": live(version))  # type: ignore[misc]

    for model in models:
        await versions.change(model, lambda _: live("v0"))
    async with asyncio.TaskGroup() as workers:
        for model in models:
            workers.create_task(swapping(model))
        found = [set(await versions.all()) for _ in range(30)]
        listed.set()
    assert found == [models] * 30


async def test_what_others_have_spoilt_hides_nothing(nc: Client, versions: LiveVersions) -> None:
    bucket = await nc.jetstream().key_value(names.JOBS_BUCKET)
    await bucket.put("live.spoilt", b"\xff{")
    await bucket.put("live.gone", live("v1").model_dump_json().encode())
    await bucket.delete("live.gone")
    await versions.change("minilm", lambda _: live("v1"))
    assert await versions.all() == {"minilm": live("v1")}
    assert await versions.get("spoilt") is None
    await versions.change("spoilt", lambda _: live("v2"))
    await versions.change("gone", lambda _: live("v3"))
    assert {model: one.version for model, one in (await versions.all()).items()} == {
        "minilm": "v1",
        "spoilt": "v2",
        "gone": "v3",
    }


async def test_a_watch_tells_what_is_and_what_comes(versions: LiveVersions) -> None:
    await versions.change("minilm", lambda _: live("v1"))
    async with asyncio.timeout(20), aclosing(versions.watch()) as changes:
        assert await anext(changes) == ("minilm", live("v1"))
        await versions.change("other", lambda _: live("v2"))
        assert await anext(changes) == ("other", live("v2"))


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_a_watch_goes_on_after_the_server_was_away(
    nats_server: NatsServer, versions: LiveVersions, end: str
) -> None:
    await versions.change("minilm", lambda _: live("v0"))
    async with asyncio.timeout(60), aclosing(versions.watch()) as changes:
        assert await anext(changes) == ("minilm", live("v0"))
        getattr(nats_server, end)()
        nats_server.start()
        await retry_while_down(lambda: versions.change("minilm", lambda _: live("v1")))
        while (await anext(changes))[1] != live("v1"):
            pass


async def test_a_watch_that_died_without_a_word_is_made_anew(nc: Client) -> None:
    await setup.create(nc)
    versions, js = LiveVersions(nc, tick_s=0.1, renew_s=0.3), nc.jetstream()
    await versions.change("minilm", lambda _: live("v1"))
    async with asyncio.timeout(20), aclosing(versions.watch()) as changes:
        await anext(changes)
        for consumer in await js.consumers_info("KV_ml_jobs"):
            await js.delete_consumer("KV_ml_jobs", consumer.name)
        await versions.change("minilm", lambda _: live("v2"))
        while (await anext(changes))[1] != live("v2"):
            pass


async def test_without_the_bucket_a_watch_waits_for_it(nc: Client) -> None:
    versions = LiveVersions(nc, tick_s=0.1, setup_s=0.1)
    with pytest.raises(NotSetUp, match="mlbus admin init"):
        await versions.all()
    with pytest.raises(NotSetUp):
        await versions.change("minilm", lambda _: live("v1"))
    async with asyncio.timeout(20), aclosing(versions.watch()) as changes:
        first = asyncio.ensure_future(anext(changes))
        await setup.create(nc)
        await versions.change("minilm", lambda _: live("v1"))
        assert await first == ("minilm", live("v1"))


async def test_a_cancelled_watch_leaves_no_consumer(nc: Client, versions: LiveVersions) -> None:
    await versions.change("minilm", lambda _: live("v1"))
    async with asyncio.timeout(20), aclosing(versions.watch()) as changes:
        await anext(changes)
        subscriptions = len(nc._subs)
    assert len(nc._subs) < subscriptions
