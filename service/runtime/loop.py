"""A loop that has to run for as long as something serves. Knows nothing of what it does."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Loop:
    """A task with an owner: `stop` ends it, and whoever asked hears of an end that nobody asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._task: asyncio.Task[None] | None = None

    def start(self, work: Coroutine[Any, Any, None], on_died: Callable[[BaseException], None]) -> None:
        """Begin. on_died: called with what the work failed with."""

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                on_died(error)

        self._task = asyncio.create_task(work, name=self._name)
        self._task.add_done_callback(ended)

    async def stop(self) -> None:
        """Cancel it and wait for that."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
