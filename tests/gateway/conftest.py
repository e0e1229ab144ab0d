"""One server, one worker on fake models and one gateway for all tests of a module."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest
import pytest_asyncio
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from gateways import Gateway, running_gateway
from nats_server import NatsServer, as_role, secured_server
from workers import running_worker

from subjects import MLClient


@dataclass
class Setup:
    """What a test talks to, and what it may hold up behind that. chat: of the model `smollm2`."""

    server: NatsServer
    encoder: FakeEncoder
    engine: FakeEngine
    chat: FakeEngine
    gateway: Gateway
    ml: MLClient


@pytest.fixture(scope="module")
def module_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = secured_server(Path(tmp_path_factory.mktemp("nats")))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def setup(module_server: NatsServer) -> AsyncIterator[Setup]:
    encoder, engine, chat = FakeEncoder(), FakeEngine(), FakeEngine("smollm2")
    async with (
        running_worker(as_role(module_server, "worker"), encoder, chat, engine),
        running_gateway(as_role(module_server, "gateway"), NATS_INBOX_PREFIX="_INBOX_ml.gateway") as gateway,
        await nats.connect(module_server.url) as nc,
        MLClient(nc) as ml,
    ):
        yield Setup(module_server, encoder, engine, chat, gateway, ml)


@pytest.fixture
def gateway(setup: Setup) -> Gateway:
    return setup.gateway
