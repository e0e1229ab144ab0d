"""The thread that loads models while others serve: one at a time, on one core, behind whatever computes for a request.

Knows nothing of what it runs.
"""

import asyncio
import functools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, TypeVarTuple, Unpack

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")
NICENESS = 10


class LoaderThread:
    """Runs functions one after another, at low priority.

    Computing with one thread of its own, it brings no second OpenMP team that would fight the device thread's.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=_step_back)

    async def run(self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop a function that runs."""
        return await asyncio.wrap_future(self._executor.submit(_guarded, functools.partial(function, *arguments)))

    def close(self) -> None:
        """Drop what has not begun. What runs finishes, but nobody waits for it."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _guarded(call: Callable[[], ResultT]) -> ResultT:
    try:
        return call()
    except BaseException as error:
        if isinstance(error, Exception):
            raise
        # A panic in Rust, as on a broken file, is no Exception, and nobody would answer for it.
        raise RuntimeError(f"the libraries broke: {error!r}") from error


def _step_back() -> None:
    """On Linux a thread has a priority of its own; elsewhere the process's, which stays as it is."""
    if sys.platform.startswith("linux"):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
