"""When the process should end: asked by a signal, or because something that it stands on has failed."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class Stop:
    """Whether the process should end, and with which exit code."""

    code: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self) -> None:
        self.asked.set()

    def fail(self, reason: object) -> None:
        """End with a non-zero exit code, so that a supervisor starts the worker again."""
        log.error("worker.failed", reason=str(reason))
        self.code = 1
        self.asked.set()


class StoppedEarly(Exception):
    """The worker was told to stop while it was starting."""


async def unless_stopped(stop: Stop, starting: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of a step of the start. Raises StoppedEarly as soon as the worker is told to stop."""
    task, asked = asyncio.create_task(starting), asyncio.create_task(stop.asked.wait())
    await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if stop.asked.is_set():
        task.cancel()
        raise StoppedEarly
    return task.result()


def end_on_signals(stop: Stop) -> None:
    """The first signal drains; a second one ends at once."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.asked.is_set():
            os._exit(130)
        stop.ask()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
