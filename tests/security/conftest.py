"""A worker behind nats-server.conf, on fake models, and those who attack it."""

from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from job_fixtures import client, events, script, worker  # noqa: F401
from nats.aio.client import Client
from nats_server import NatsServer, as_role
from workers import running_worker

from service.jobs import setup


@pytest.fixture
async def admin(secured_server: NatsServer) -> AsyncIterator[Client]:
    """The administrator, who has set everything up."""
    async with await nats.connect(as_role(secured_server, "admin")) as nc:
        await setup.create(nc)
        yield nc


@pytest.fixture
async def anyone(secured_server: NatsServer, admin: Client, tmp_path: Path) -> AsyncIterator[Client]:
    """A client without credentials, where a worker serves an embedding model and two that generate."""
    loaded = FakeEncoder(), FakeEngine("smollm2"), FakeEngine()
    (tmp_path / "code").mkdir()
    own = {"data_dir": tmp_path / "data", "finetune": {"roots": (tmp_path / "code",)}}
    async with (
        running_worker(as_role(secured_server, "worker"), *loaded, **own),
        await nats.connect(secured_server.url) as nc,
    ):
        yield nc


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    """A client of a server without passwords."""
    async with await nats.connect(nats_url) as nc:
        yield nc


@pytest.fixture
async def attacker(nats_url: str) -> AsyncIterator[Client]:
    """Another one, who wishes the first no good."""
    async with await nats.connect(nats_url) as nc:
        yield nc
