"""A worker's PINGs to itself: what counts as silence, and what does not."""

import asyncio
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats_server import NatsServer
from pydantic import SecretStr

from service.bus.causes import Denied
from service.bus.client import BusClient
from service.bus.connection import connected
from service.bus.settings import NatsSettings
from service.runtime import self_watch
from service.runtime.self_watch import SelfWatch


class Answering:
    """Who answers in the worker's place. asked: set with each question."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.asked = asyncio.Semaphore(0)
        self.answers = True

    async def on_ping(self, msg: Msg) -> None:
        if self.answers:
            await self.nc.publish(msg.reply, b"{}")
        self.asked.release()

    async def hear(self, questions: int) -> None:
        for _ in range(questions):
            await self.asked.acquire()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_watch, "EVERY_S", 0.1)


async def test_only_silence_that_lasts_counts(nats_server: NatsServer) -> None:
    nc = BusClient()
    await nc.connect(nats_server.url, reconnect_time_wait=0.05, max_reconnect_attempts=-1)
    lost: list[str] = []
    watch = SelfWatch(nc, "w1", lost.append)
    worker = Answering(nc)
    subscription = await nc.subscribe("$SRV.PING.ml.w1", cb=worker.on_ping)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch.run())
        await worker.hear(5)
        nats_server.restart()  # while it is away nothing is to be expected
        await worker.hear(5)
        assert not lost
        await subscription.unsubscribe()  # from here on the server itself answers, that nobody listens
        await watching
    assert len(lost) == 1
    await nc.close()


@pytest.mark.parametrize(
    "grants",
    [
        'publish: ["_INBOX_ml.>"], subscribe: [">"]',
        'publish: ["$SRV.PING.ml.*"], subscribe: [">"]',
        'publish: [">"], subscribe: ["$SRV.>"]',
    ],
)
async def test_what_an_older_configuration_denies_ends_the_watch_and_not_the_worker(
    tmp_path: Path, grants: str
) -> None:
    """It may not ask, not answer, or not hear the answer."""
    conf = tmp_path / "nats.conf"
    conf.write_text(f"authorization {{ users: [{{ user: worker, password: w, permissions: {{ {grants} }} }}] }}")
    server = NatsServer(tmp_path, "-c", str(conf)).start()
    lost: list[str] = []
    heard: list[Denied] = []

    def on_denied(denied: Denied) -> None:
        heard.append(denied)
        watch.on_denied(denied.subject)

    settings = NatsSettings(url=server.url, user="worker", password=SecretStr("w"))
    async with asyncio.timeout(20), connected(settings, on_denied=on_denied) as nc:
        watch = SelfWatch(nc, "W1", lost.append)
        await nc.subscribe("$SRV.PING.ml.W1", cb=Answering(nc).on_ping)
        await watch.run()
    assert heard
    assert not lost
    server.stop()
