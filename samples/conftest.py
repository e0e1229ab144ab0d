"""What the samples are run against: a real worker on the bundled models, or a nats-server with nobody behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from nats_server import plain_server
from shell import MLBUS
from workers import clean_environment, worker_process


@pytest.fixture(scope="session")
def worker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the server that a worker has with it."""
    ports = ("--nats-port", "0", "--metrics-port", "0")
    same_text = ("--dtype", "fp32")  # for the same prompt, whatever is in the cache
    alone = ("--threads", "1")  # several that share busy cores wait for each other at every product
    command = [MLBUS, "serve", "--embedded-nats", *ports, *same_text, *alone]
    with worker_process(command, tmp_path_factory.mktemp("worker"), clean_environment()) as events:
        yield events["nats_server.started"]["url"]


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    """Of a server without passwords and without a worker."""
    server = plain_server(tmp_path / "nats")
    try:
        yield server.start().url
    finally:
        server.stop()
