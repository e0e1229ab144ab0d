"""A worker behind nats-server.conf: what it may do is enough, and what is too little is said."""

import nats
import pytest
from fake_encoder import FakeEncoder
from nats_server import PASSWORDS
from workers import running_worker

from service.bus.errors import NotPermitted
from subjects import MLClient


def as_role(server, role: str) -> str:
    return f"nats://{role}:{PASSWORDS[role]}@{server.address}"


@pytest.mark.parametrize("role", ["client", "admin", None])
async def test_each_role_is_served(secured_server, role):
    prefix = f"_INBOX_{role}" if role else "_INBOX"
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
