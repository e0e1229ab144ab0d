"""The end of the process: requested by a signal, or because something that it depends on has failed."""

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
"""How long the interpreter's exit may take, which sends the last traces for example."""
LONGEST_S = 1e6
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(slots=True)
class Stop:
    """Whether the process should end, and with which exit code.

    within_s: how long that may take; after it the process dumps each thread's traceback and ends with code 1. None:
    any time. name: of the process, in the log.
    """

    within_s: float | None = None
    code: int = 0
    requested: asyncio.Event = field(default_factory=asyncio.Event)
    name: str = "worker"
    _armed: bool = False

    def request(self) -> None:
        self.arm()
        self.requested.set()

    def arm(self) -> None:
        """Have the process end in time, whatever hangs; callable in any thread. The timer needs no Python to run."""
        if self.within_s is not None and not self._armed:
            self._armed = True
            faulthandler.dump_traceback_later(min(self.within_s, LONGEST_S), exit=True)

    def fail(self, reason: object, within_s: float = LONGEST_S) -> None:
        """End with a non-zero exit code, so that a supervisor restarts the process. within_s: if that is less."""
        log.error(f"{self.name}.failed", reason=str(reason))
        self.code = 1
        if self.within_s is not None:
            self.within_s = min(self.within_s, within_s)
        self.request()


class StoppedEarly(Exception):
    """The worker was told to stop while it was starting."""


async def unless_stopped(stop: Stop, starting: Coroutine[Any, Any, ResultT]) -> ResultT:
    """The result of a step of the start. Raises StoppedEarly as soon as the worker is told to stop."""
    task, stopping = asyncio.create_task(starting), asyncio.create_task(stop.requested.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if stop.requested.is_set():
        task.cancel()
        raise StoppedEarly
    return task.result()


def end_soon(code: int) -> None:
    """End the process soon even if a thread is busy: it cannot be interrupted, and Python would wait for it."""
    timer = threading.Timer(AT_EXIT_S, os._exit, (code,))
    timer.daemon = True
    timer.start()


def end_on_signals(stop: Stop) -> None:
    """Drain on the first signal, end at once on the second.

    A thread of its own reads them, because the event loop may hang. If that thread cannot run either, as beside a
    pattern that takes for ever to match, Python still runs the handler.
    """
    loop = asyncio.get_running_loop()
    signals, wake = os.pipe()
    os.set_blocking(wake, False)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: stop.arm())
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    threading.Thread(target=_read_signals, args=(signals, stop, loop), name="signals", daemon=True).start()


def _read_signals(signals: int, stop: Stop, loop: asyncio.AbstractEventLoop) -> None:
    is_second = False
    while number := os.read(signals, 1):
        if number[0] not in _SIGNALS:
            continue
        if is_second or stop.requested.is_set():
            os._exit(130)
        is_second = True
        stop.arm()
        with suppress(RuntimeError):  # the loop is closed: the process ends already
            loop.call_soon_threadsafe(stop.request)
