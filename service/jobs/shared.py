"""One reading for all who ask at the same time, with a pause after it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

ResultT = TypeVar("ResultT")
LEAST_S = 0.25


class Shared(Generic[ResultT]):
    """read: what costs others the event loop. It begins every LEAST_S at most, and takes half of the time at most."""

    def __init__(self, read: Callable[[], Awaitable[ResultT]]) -> None:
        self._read = read
        self._reading = asyncio.Lock()
        self._begun = 0
        self._done = 0
        self._result: ResultT | None = None
        self._not_before = 0.0

    async def result(self) -> ResultT:
        """What a reading gives that begins after the call. Raises what it raises."""
        before = self._begun
        async with self._reading:
            if self._done <= before:
                self._result = await self._once()
                self._done = self._begun
            return cast(ResultT, self._result)

    async def _once(self) -> ResultT:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._not_before - loop.time())
        self._begun += 1
        began = loop.time()
        try:
            return await self._read()
        finally:
            self._not_before = began + max(LEAST_S, 2 * (loop.time() - began))
