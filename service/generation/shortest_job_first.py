"""A thread pool in which short jobs go before long ones, and no job waits for ever."""

import asyncio
import functools
import heapq
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple, Unpack

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, order=True)
class _Job:
    """due: when it should begin, in seconds of the monotonic clock. number: order among jobs due at the same time."""

    due: float
    number: int
    call: Callable[[], Any] = field(compare=False)
    future: Future[Any] = field(compare=False)


class ShortestJobFirst:
    """Runs functions in the order in which they are due: a job may wait `unit_s` seconds for each unit of its size.

    So a short job overtakes a long one that came shortly before it. The queue is not bounded; callers count their jobs.
    """

    def __init__(self, threads: int, unit_s: float, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._unit_s = unit_s
        self._lock = threading.Lock()
        self._order = itertools.count()
        self._waiting: list[_Job] = []

    async def run(self, size: int, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop a function that runs."""
        future: Future[ResultT] = Future()
        due = time.monotonic() + size * self._unit_s
        with self._lock:
            job = _Job(due, next(self._order), functools.partial(function, *arguments), future)
            heapq.heappush(self._waiting, job)
        self._pool.submit(self._run_next)
        return await asyncio.wrap_future(future)

    def _run_next(self) -> None:
        with self._lock:
            if not self._waiting:  # closed meanwhile
                return
            job = heapq.heappop(self._waiting)
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            result = job.call()
        except BaseException as error:  # its caller must not wait for ever
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    def close(self) -> None:
        """Drop what has not begun, without waiting for what runs."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            dropped, self._waiting = self._waiting, []
        for job in dropped:
            job.future.cancel()
