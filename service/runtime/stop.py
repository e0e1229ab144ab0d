"""When the process should end: asked by a signal, or because something that it stands on has failed."""

import asyncio
import faulthandler
import os
import signal
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")

AT_EXIT_S = 3.0
"""How long what runs at the interpreter's end may take, such as sending the last traces."""
LONGEST_S = 1e6
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Stop:
    """Whether the process should end, and with which exit code.

    within_s: how long it may take over that; past it the process tells where each thread is and ends with code 1.
    None: as long as it takes.
    """

    within_s: float | None = None
    code: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    _armed: bool = False

    def ask(self) -> None:
        self.arm()
        self.asked.set()

    def arm(self) -> None:
        """Have the process end in time, whatever hangs; in any thread. What ends it needs neither Python nor a turn."""
        if self.within_s is not None and not self._armed:
            self._armed = True
            faulthandler.dump_traceback_later(min(self.within_s, LONGEST_S), exit=True)

    def fail(self, reason: object, within_s: float = LONGEST_S) -> None:
        """End with a non-zero exit code, so that a supervisor starts the worker again. within_s: if that is less."""
        log.error("worker.failed", reason=str(reason))
        self.code = 1
        if self.within_s is not None:
            self.within_s = min(self.within_s, within_s)
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
    """The first signal drains; a second one ends at once.

    A thread of its own hears them, for the event loop may be what hangs. Where that thread gets no turn, as beside a
    pattern that takes for ever to match, Python lets the handler run all the same.
    """
    loop = asyncio.get_running_loop()
    heard, wake = os.pipe()
    os.set_blocking(wake, False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: stop.arm())
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    threading.Thread(target=_hear, args=(heard, stop, loop), name="signals", daemon=True).start()


def _hear(heard: int, stop: Stop, loop: asyncio.AbstractEventLoop) -> None:
    told = False
    while number := os.read(heard, 1):
        if number[0] not in _SIGNALS:
            continue
        if told or stop.asked.is_set():
            os._exit(130)
        told = True
        stop.arm()
        with suppress(RuntimeError):  # the loop is closed: the process ends already
            loop.call_soon_threadsafe(stop.ask)
