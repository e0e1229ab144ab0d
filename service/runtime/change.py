"""A change that several may wait for, each for a condition of its own. Knows nothing of what changed."""

import asyncio


class Change:
    """Wakes everybody who waits when it is set, and nobody who comes later.

    Look at the condition, then wait, with no other await between the two: no change is missed.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        await self._event.wait()
