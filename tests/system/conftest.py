"""What the tests of jobs share, and a worker with an engine whose steps the test holds back and lets go."""

from collections.abc import AsyncIterator, Iterator

import nats
import pytest
import structlog
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from job_fixtures import client, events, script, worker  # noqa: F401
from journal import Journal
from nats.aio.client import Client
from workers import running_worker


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    engine = FakeEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
async def nc(nats_url: str, engine: FakeEngine) -> AsyncIterator[Client]:
    """A connection to it."""
    async with running_worker(nats_url, FakeEncoder(), engine), await nats.connect(nats_url) as connection:
        yield connection
        engine.gate.set()


@pytest.fixture
def journal() -> Iterator[Journal]:
    """All that is logged."""
    journal = Journal()
    structlog.configure(processors=[journal])
    yield journal
    structlog.reset_defaults()
