"""The threads that load models while others serve: each on one core, behind whatever computes for a request.

Knows nothing of what they run, nor how many may at once.
"""

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar, TypeVarTuple, Unpack

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")
NICENESS = 10


class StillRunning(Exception):
    """What was given up has not ended."""


class LoaderThreads:
    """Runs each function in a thread of its own, at low priority; one that hangs holds up no other, nor the end.

    Computing with one thread of its own, it brings no second OpenMP team that would fight the device thread's.
    """

    def __init__(self) -> None:
        self._bounded: set[str] = set()

    async def run(self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop it."""
        return await asyncio.wrap_future(self._start(function, *arguments))

    async def run_within(
        self, seconds: float, name: str, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs
    ) -> ResultT:
        """The same; past the seconds it is given up, and goes on alone.

        Raises TimeoutError; StillRunning as long as one of this name runs.
        """
        if name in self._bounded:
            raise StillRunning
        self._bounded.add(name)
        future = self._start(function, *arguments)
        future.add_done_callback(lambda _: self._bounded.discard(name))
        async with asyncio.timeout(seconds):
            return await asyncio.wrap_future(future)

    def _start(self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> Future[ResultT]:
        future: Future[ResultT] = Future()
        future.set_running_or_notify_cancel()  # what runs is not stopped
        call = functools.partial(function, *arguments)
        threading.Thread(target=_run, args=(call, future), name="loader", daemon=True).start()
        return future


def _run(call: Callable[[], ResultT], future: Future[ResultT]) -> None:
    _step_back()
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
    except BaseException as error:
        # A panic in Rust, as on a broken file, is no Exception, and nobody would answer for it.
        broken = RuntimeError(f"the libraries broke: {error!r}")
        broken.__cause__ = error
        future.set_exception(broken)


def _step_back() -> None:
    """On Linux a thread has a priority of its own; elsewhere the process's, which stays as it is."""
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
