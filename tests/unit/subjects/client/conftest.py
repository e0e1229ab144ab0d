"""A client beside a scripted worker."""

from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.client import Client

from subjects import MLClient


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    async with await nats.connect(nats_url, reconnect_time_wait=0.1, max_reconnect_attempts=-1) as connection:
        yield connection


@pytest.fixture
def ml(nc: Client) -> MLClient:
    return MLClient(nc, timeout_s=20)
