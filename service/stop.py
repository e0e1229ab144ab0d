"""When the process should end: asked by a signal, or because something that it stands on has failed."""

import asyncio
import faulthandler
import os
import signal
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")

AT_EXIT_S = 3.0
"""How long what runs at the interpreter's end may take, such as sending the last traces."""
LONGEST_S = 1e6


@dataclass(slots=True)
class Stop:
    """Whether the process should end, and with which exit code.

    within_s: how long it may take over that; past it the process tells where each thread is and ends with code 1.
    None: as long as it takes.
    """

    within_s: float | None = None
    code: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def ask(self) -> None:
        if self.within_s is not None and not self.asked.is_set():
            faulthandler.dump_traceback_later(min(self.within_s, LONGEST_S), exit=True)
        self.asked.set()

    def fail(self, reason: object) -> None:
        """End with a non-zero exit code, so that a supervisor starts the worker again."""
        log.error("worker.failed", reason=str(reason))
        self.code = 1
        self.ask()


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


def end_soon(code: int) -> None:
    """End the process in a moment although a thread is busy, which cannot be interrupted: Python would wait for it."""
    timer = threading.Timer(AT_EXIT_S, os._exit, (code,))
    timer.daemon = True
    timer.start()


def end_on_signals(stop: Stop) -> None:
    """The first signal drains; a second one ends at once."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.asked.is_set():
            os._exit(130)
        stop.ask()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
