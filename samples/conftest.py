"""What the samples are run against: a real worker on the bundled models, or a nats-server with nobody behind it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from nats_server import plain_server
from workers import clean_environment


@pytest.fixture(scope="session")
def worker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the server that a worker has with it."""
    ports = ("--nats-port", "0", "--metrics-port", "0")
    same_text = ("--dtype", "fp32")  # for the same prompt, whatever is in the cache
    alone = ("--threads", "1")  # several that share busy cores wait for each other at every product
    command = [Path(sys.executable).with_name("mlbus"), "serve", "--embedded-nats", *ports, *same_text, *alone]
    folder = tmp_path_factory.mktemp("worker")
    with subprocess.Popen(command, cwd=folder, env=clean_environment(), stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        try:
            events = {}
            while "worker.ready" not in events:
                line = worker.stderr.readline()
                assert line.startswith("{"), f"the worker did not start: {line or list(events)}"
                events[json.loads(line)["event"]] = json.loads(line)
            yield events["nats_server.started"]["url"]
        finally:
            worker.terminate()
            worker.communicate(timeout=30)
    assert worker.returncode == 0


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    """Of a server without passwords and without a worker."""
    server = plain_server(tmp_path / "nats")
    try:
        yield server.start().url
    finally:
        server.stop()
