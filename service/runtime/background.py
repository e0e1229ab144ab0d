"""Tasks that outlive the caller that started them, and changes that tasks wait for."""

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
    """Owns tasks until they end; an unexpected failure is logged, whether or not anybody awaits the task."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, ResultT], name: str) -> asyncio.Task[ResultT]:
        """Start a task."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def shielded(self, work: Coroutine[Any, Any, ResultT], name: str) -> ResultT:
        """Start a task and return its result; a caller that is cancelled does not stop it."""
        return await asyncio.shield(self.spawn(work, name))

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ModelError):
            log.error("task.failed", task=task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel what has not ended, and wait for that."""
        await cancel_and_wait(*self._tasks)


@asynccontextmanager
async def background_task(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], name: str) -> AsyncIterator[None]:
    """Run `work(closing)` in a task while the context is open.

    `closing` is set at the end, before the task is cancelled: nats-py may swallow a cancellation.
    """
    closing = asyncio.Event()
    task = asyncio.create_task(work(closing), name=name)
    try:
        yield
    finally:
        closing.set()
        await cancel_and_wait(task)


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end; again after a while, since nats-py swallows cancellations as it flushes."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)


class Change:
    """Wakes all who wait when it is set, and nobody who comes later.

    Check the condition, then wait, with no other await between the two: then no change is missed.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        await self._event.wait()
