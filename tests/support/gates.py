"""Waiting for fakes whose work a test holds back."""

import asyncio
import threading
from typing import Protocol


class Gated(Protocol):
    """A fake encoder, engine or loader. entered: set once it has been called."""

    entered: threading.Event


async def entered(fake: Gated) -> None:
    assert await asyncio.to_thread(fake.entered.wait, 10)
