"""Whether something is going on, for tasks that wait until it begins or until it has ended."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Activity:
    """Any number of things that go on at once: each opens `going_on`."""

    def __init__(self) -> None:
        self._count = 0
        self._busy, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """While the context is open, this is active."""
        self._count += 1
        self._busy.set()
        self._idle.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._busy.clear()
                self._idle.set()

    async def wait_begun(self) -> None:
        """Return as soon as something goes on."""
        await self._busy.wait()

    async def wait_quiet(self, seconds: float) -> None:
        """Return once nothing has gone on for so many seconds."""
        while True:
            await self._idle.wait()
            try:
                async with asyncio.timeout(seconds):
                    await self._busy.wait()
            except TimeoutError:
                return
