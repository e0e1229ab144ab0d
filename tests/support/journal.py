"""What was logged, for tests that wait for an event instead of sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import structlog


class Journal:
    """A structlog processor that keeps every line; `until` waits for the next one of a kind."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self._read: dict[str, int] = {}
        self._written = asyncio.Condition()
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, _logger: object, _method: str, line: MutableMapping[str, Any]) -> str:
        self.lines.append(dict(line))
        task = asyncio.get_running_loop().create_task(self._notify())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        raise structlog.DropEvent

    async def until(self, event: str, timeout_s: float = 10) -> dict[str, Any]:
        """The first line of that event that no earlier call returned."""

        def found() -> int | None:
            start = self._read.get(event, 0)
            return next((i for i in range(start, len(self.lines)) if self.lines[i]["event"] == event), None)

        async with asyncio.timeout(timeout_s), self._written:
            await self._written.wait_for(lambda: found() is not None)
        at = found()
        assert at is not None
        self._read[event] = at + 1
        return self.lines[at]

    async def _notify(self) -> None:
        async with self._written:
            self._written.notify_all()
