"""Workers for the tests: the real process wiring, in this event loop, on a fake or a given encoder."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fake_encoder import FakeEncoder

from service.app import Started, Stop, worker
from service.config import Settings


@asynccontextmanager
async def running_worker(url: str, *encoders: Any, **settings: Any) -> AsyncIterator[Started]:
    """A worker on `url` that serves the encoders (a FakeEncoder if none is given); leaving drains it."""
    configured = Settings(nats_url=url, **{"metrics_port": -1, **settings})
    async with worker(configured, Stop(), encoders or (FakeEncoder(),)) as started:
        yield started


def clean_environment(**values: str) -> dict[str, str]:
    """This process's environment for a child, without anything that would configure mlbus or NATS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLBUS_", "NATS_"))}
    return {**kept, **values}
