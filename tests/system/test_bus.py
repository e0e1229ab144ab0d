import pytest
from service.bus import connected
from service.nats_env import NatsSettings
async def test_a(nats_url):
    async with connected(NatsSettings(url=nats_url)) as nc:
        sub = await nc.subscribe("x")
        await nc.publish("x", b"1")
        assert (await sub.next_msg()).data == b"1"
async def test_b(secured_server):
    async with connected(NatsSettings(url=secured_server.url)) as nc:
        await nc.publish("xX", b"1")
        await nc.flush()
async def test_c(secured_server):
    async with connected(NatsSettings(url=secured_server.url, user="worker", password="x")) as nc:
        pass
