"""Tasks that outlive whoever asked for them, and their owner. Knows nothing of what they do."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

from models.errors import ModelError

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")
CANCEL_AGAIN_S = 15.0


class Background:
    """Owns tasks until they end; one that fails unforeseen is logged, whether or not somebody waits for it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, ResultT], name: str) -> asyncio.Task[ResultT]:
        """Begin to work on it."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def shielded(self, work: Coroutine[Any, Any, ResultT], name: str) -> ResultT:
        """Its result; whoever waits for it may leave without stopping it."""
        return await asyncio.shield(self.spawn(work, name))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ModelError):
            log.error("task.failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel what has not ended, and wait for that."""
        await stopped(*self._tasks)


@asynccontextmanager
async def going_on(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], name: str) -> AsyncIterator[None]:
    """Inside, the work goes on in a task. Its event is set at the end, where nats-py swallows the cancellation."""
    closing = asyncio.Event()
    task = asyncio.create_task(work(closing), name=name)
    try:
        yield
    finally:
        closing.set()
        await stopped(task)


async def stopped(*tasks: asyncio.Task[Any]) -> None:
    """Cancel them and wait for their end; once more after a while, since nats-py swallows it while it flushes."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
