"""Fixtures for every test: a real nats-server, on a port of its own, gone when the test ends."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import HealthCheck, settings
from nats_server import NatsServer, plain_server
from nats_server import secured_server as secured

# Before a test module loads torch: several test processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # where a test asks for more threads
if "TESTS_CACHE" not in os.environ:  # one folder for all processes of this run, see gguf_model.py
    os.environ["TESTS_CACHE"] = tempfile.mkdtemp(prefix="mlbus-tests-")
    atexit.register(shutil.rmtree, os.environ["TESTS_CACHE"], ignore_errors=True)
# Machines are shared and slow at times: how long an example takes tells nothing.
settings.register_profile("mlbus", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mlbus")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that runs within a test silences the log for its whole process."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def nats_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server without passwords: url, restart(), stop(), kill()."""
    server = plain_server(tmp_path / "nats")
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def nats_url(nats_server: NatsServer) -> str:
    return nats_server.url


@pytest.fixture
def secured_server(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with our nats-server.conf: its roles, and `local` for who brings nothing."""
    server = secured(tmp_path / "nats")
    try:
        yield server.start()
    finally:
        server.stop()
