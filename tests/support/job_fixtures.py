"""Fixtures of the tests of jobs, to be imported: the script of the steps, what is heard, the workers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from fake_steps import Script
from nats_server import NatsServer, plain_server
from serve_jobs import Events, JobsWorker, jobs_worker, listening, set_up


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One that is set up for jobs, for all tests of a module that imports it."""
    server = plain_server(tmp_path_factory.mktemp("nats"))
    try:
        asyncio.run(set_up(server.start().url))
        yield server
    finally:
        server.stop()


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Steps that end well."""
    return Script(tmp_path / "script").write()


@pytest.fixture
async def events(nats_url: str) -> AsyncIterator[Events]:
    """The events of all jobs, on a server that is set up for them."""
    await set_up(nats_url)
    async with listening(nats_url) as heard:
        yield heard


@pytest.fixture
async def worker(nats_url: str, tmp_path: Path, script: Script, events: Events) -> AsyncIterator[JobsWorker]:
    """A worker that takes jobs."""
    async with jobs_worker(nats_url, tmp_path / "data", script) as running:
        yield running


@pytest.fixture
async def client(nats_url: str, tmp_path: Path, script: Script, events: Events) -> AsyncIterator[JobsWorker]:
    """A worker that only lets jobs be submitted."""
    async with jobs_worker(nats_url, tmp_path / "data", script, "client", takes_jobs=False) as running:
        yield running
