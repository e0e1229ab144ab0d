"""Workers for the tests: in this event loop on fake or given models, or as a process that loads its own."""

import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from fake_encoder import FakeEncoder

from service.app import Started, worker
from service.residency.loader import ModelLoader
from service.runtime.stop import Stop
from service.settings import Settings


@asynccontextmanager
async def running_worker(
    url: str, *loaded: Any, loader: ModelLoader | None = None, **settings: Any
) -> AsyncIterator[Started]:
    """A worker on `url`; leaving drains it.

    It serves what is loaded, encoders or engines, or what the loader loads if there is one, or else a FakeEncoder.
    """
    configured = Settings(nats_url=url, **{"metrics_port": -1, "models": ("minilm",), **settings})
    serves = loaded or (() if loader else (FakeEncoder(),))
    async with worker(configured, Stop(), serves, loader=loader) as started:
        yield started


@contextmanager
def worker_process(
    command: Sequence[str | Path], folder: Path, environment: dict[str, str]
) -> Iterator[dict[str, dict[str, Any]]]:
    """`mlbus serve` with its options, in a folder -> the log lines until it was ready, by event; leaving ends it."""
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        events: dict[str, dict[str, Any]] = {}
        try:
            while "worker.ready" not in events:
                line = worker.stderr.readline()
                assert line.startswith("{"), f"the worker did not start: {line or list(events)}"
                events[json.loads(line)["event"]] = json.loads(line)
            yield events
        finally:
            worker.terminate()
            worker.communicate(timeout=30)
    assert worker.returncode == 0


def clean_environment(**values: str) -> dict[str, str]:
    """This process's environment for a child, without anything that would configure mlbus or NATS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLBUS_", "NATS_"))}
    return {**kept, **values}


def hear_ctrl_c() -> None:
    """For a child, as at a prompt: a suite that runs in the background has it ignored, and its children with it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
