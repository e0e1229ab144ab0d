"""A worker behind nats-server.conf: what it may do is enough, and what is too little is said."""

import nats
import pytest
from fake_encoder import FakeEncoder
from nats_server import as_role
from versioned_fleet import BASE_WEIGHTS, MODEL, Fleet
from workers import running_worker

from service.bus.connection import connected
from service.bus.errors import NotPermitted
from service.bus.settings import NatsSettings
from service.jobs import setup
from subjects import MLClient


@pytest.mark.parametrize("role", ["client", "admin", None])
async def test_each_role_is_served(secured_server, role):
    prefix = f"_INBOX_ml.{role}" if role else "_INBOX"
    async with running_worker(as_role(secured_server, "worker")):
        url = as_role(secured_server, role) if role else secured_server.url
        async with await MLClient.connect(url, inbox_prefix=prefix) as ml:
            assert (await ml.embed("hello")).usage.tokens == 1
            assert len((await ml.embed_batch([f"t{n}" for n in range(2000)])).embeddings) == 2000
            assert (await ml.similarity("a", "a")).score == pytest.approx(1, abs=1e-6)
            assert len(await ml.discover("STATS")) == 1


async def test_a_cancel_and_a_lost_listener_work_within_the_role(secured_server):
    encoder = FakeEncoder()
    async with (
        running_worker(as_role(secured_server, "worker"), encoder),
        await MLClient.connect(secured_server.url) as ml,
    ):
        stream = ml.embed_stream([f"t{n}" for n in range(8000)])
        await anext(stream)
        await stream.aclose()
        assert (await ml.embed("after")).usage.tokens == 1
    assert len(encoder.seen) < 8000


async def test_a_new_version_reaches_the_fleet_within_the_role(secured_server, tmp_path, journal):
    admin = NatsSettings(url=as_role(secured_server, "admin"), inbox_prefix="_INBOX_ml.admin")
    async with connected(admin) as nc:
        await setup.create(nc)
    fleet = Fleet(as_role(secured_server, "worker"), tmp_path)
    async with fleet.joined("one") as one, fleet.joined("two") as two:
        version = one.make("better")
        assert await one.rollout.go_live(MODEL, version, "job") == []
        assert (one.serves, two.serves) == (version[-12:], version[-12:])
        await two.rollout.go_back(MODEL, "base")
        await one.until_serves(BASE_WEIGHTS[:12])
        await one.rollout.checkpoints.remove(MODEL, version)
        assert await one.rollout.checkpoints.list() == []
    assert [line for line in journal.lines if line["event"] == "bus.permission_denied"] == []


async def test_a_worker_that_may_not_listen_says_so_and_does_not_start(secured_server):
    with pytest.raises(NotPermitted, match=r"ml\.embed"):
        async with running_worker(as_role(secured_server, "client")):
            pass


async def test_a_worker_without_credentials_says_so(secured_server):
    with pytest.raises(NotPermitted, match="without credentials"):
        async with running_worker(secured_server.url):
            pass
    connection = await nats.connect(secured_server.url)
    await connection.close()
