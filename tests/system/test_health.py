"""The HTTP port beside the metrics: /healthz and /readyz, in each state that a worker can be in."""

import asyncio
import contextlib
import socket
import urllib.error

import pytest
from fake_encoder import FakeEncoder
from fake_loader import FakeLoader
from http_probe import asked, probe
from workers import running_worker

from service.runtime import http_port
from service.settings import BadSettings
from subjects import MLClient


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def test_a_worker_that_serves_is_well_and_ready(nats_url):
    async with running_worker(nats_url, metrics_port=0) as started:
        assert await asked(started.metrics_port, "healthz") == (200, "ok\n")
        assert await asked(started.metrics_port, "readyz") == (200, "ok\n")
        status, text = await asked(started.metrics_port, "metrics")
        assert status == 200
        assert "mlbus_models_loaded 1.0" in text


async def test_a_worker_that_loads_is_well_and_not_ready(nats_url):
    loader, port = FakeLoader(), free_port()
    loader.gate.clear()
    async with contextlib.AsyncExitStack() as stack:
        starting = asyncio.create_task(
            stack.enter_async_context(running_worker(nats_url, loader=loader, metrics_port=port))
        )
        assert await asyncio.to_thread(loader.entered.wait, 20)
        assert await asked(port, "healthz") == (200, "ok\n")
        assert await asked(port, "readyz") == (503, "starting\n")
        loader.gate.set()
        await starting
        assert (await asked(port, "readyz"))[0] == 200


async def test_a_worker_that_drains_is_not_ready(nats_url):
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with contextlib.AsyncExitStack() as stack, await MLClient.connect(nats_url) as ml:
        started = await stack.enter_async_context(running_worker(nats_url, encoder, metrics_port=0))
        embedding = asyncio.create_task(ml.embed("x"))
        assert await asyncio.to_thread(encoder.entered.wait, 20)
        draining = asyncio.create_task(stack.aclose())
        async with asyncio.timeout(20):
            while (answer := await asked(started.metrics_port, "readyz"))[0] == 200:
                pass
        assert answer == (503, "not subscribed: it starts, or drains\n")
        assert (await asked(started.metrics_port, "healthz"))[0] == 200
        encoder.gate.set()
        await embedding
        await draining


async def test_a_worker_without_its_server_is_not_ready_until_that_is_back(nats_server):
    async with running_worker(nats_server.url, metrics_port=0) as started, asyncio.timeout(60):
        await asyncio.to_thread(nats_server.kill)
        while (answer := await asked(started.metrics_port, "readyz"))[0] == 200:
            pass
        assert answer == (503, "not connected to NATS\n")
        assert (await asked(started.metrics_port, "healthz"))[0] == 200
        await asyncio.to_thread(nats_server.start)
        while (await asked(started.metrics_port, "readyz"))[0] != 200:
            pass


async def test_a_loop_that_does_not_turn_is_told(nats_url, monkeypatch):
    monkeypatch.setattr(http_port, "LOOP_TIMEOUT_S", 0.1)
    async with running_worker(nats_url, metrics_port=0) as started:
        for path in ("healthz", "readyz"):
            assert probe(started.metrics_port, path) == (503, "the event loop has not responded for 0.1 s\n")


async def test_where_it_is_served_can_be_chosen(nats_url):
    async with running_worker(nats_url, metrics_host="127.0.0.2", metrics_port=0) as started:
        assert (await asyncio.to_thread(probe, started.metrics_port, "readyz", "127.0.0.2"))[0] == 200
        with pytest.raises(urllib.error.URLError):
            await asked(started.metrics_port, "readyz")
    with pytest.raises(BadSettings, match=r"metrics_host '192\.0\.2\.1' cannot be listened on"):
        async with running_worker(nats_url, metrics_host="192.0.2.1", metrics_port=0):
            pass
