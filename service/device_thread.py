"""One thread per device: every forward pass runs on it, in turn. Knows nothing of what it runs.

Urgent jobs go first, and in the middle of another wherever that one lets them. Whoever has them shares the device
evenly: the source that has had the least of its time goes first.
"""

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple, Unpack

from .fair_queue import FairQueue

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")

AGE_S = 1.0
"""How long a job gives way to urgent ones before it insists on its share: a burst passes, a flood does not."""
SHARE = 0.2
"""Of the device's time, what a job insists on from then on."""


@dataclass(slots=True, eq=False)
class _Job:
    """source: of an urgent one, whose it is; None for others. since: when it became the oldest of its kind.

    ran_s: for how long it had the device until `resumed`.
    """

    call: Callable[[], Any]
    source: str | None
    since: float
    future: Future[Any] = field(default_factory=Future)
    ran_s: float = 0.0
    resumed: float = 0.0

    def insists(self, now: float) -> bool:
        """Whether it has given way for long enough, for what it has run."""
        return now - self.since > AGE_S + self.ran_s / SHARE

    def run(self) -> None:
        try:
            result = self.call()
        except BaseException as error:
            self.future.set_exception(error)
            self = None  # type: ignore[assignment]  # else error and job keep each other, and the tensors in the frames
        else:
            self.future.set_result(result)


class DeviceThread:
    """Runs functions one after another: urgent ones first, each source's, and the others, in their order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._clock = clock
        self._lock = threading.Lock()
        self._urgent = FairQueue[_Job]()
        self._others: deque[_Job] = deque()
        self._other_ended = clock()
        self._running: _Job | None = None

    async def run(
        self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs, urgent: bool = False, source: str = ""
    ) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop a function that runs.

        An urgent one may run inside another that calls `yield_point`; raises whatever it raises to its own caller.
        source: with whose urgent ones it takes turns; each source gets as much time as any other.
        """
        job = _Job(functools.partial(function, *arguments), source if urgent else None, self._clock())
        with self._lock:
            self._executor.submit(self._turn)
            if urgent:
                self._urgent.put(source, job)
            else:
                self._others.append(job)
        result: ResultT = await asyncio.wrap_future(job.future)
        return result

    def yield_point(self) -> None:
        """Called on the device's thread, by what runs there: runs the urgent jobs that wait, then returns.

        Returns at once in an urgent job, and in one that has given way for long enough.
        """
        job = self._running
        if job is None or job.source is not None or not self._urgent:
            return
        now = self._clock()
        job.ran_s += now - job.resumed
        while not job.insists(self._clock()) and (urgent := self._take_urgent()):
            self._run(urgent)
        job.resumed = self._clock()

    def _turn(self) -> None:
        """Run the next job, if there is one: what this turn was for may have run inside another job."""
        if job := self._take():
            self._run(job)

    def _take(self) -> _Job | None:
        with self._lock:
            if self._others:
                oldest = self._others[0]
                oldest.since = max(oldest.since, self._other_ended)
                if not self._urgent or oldest.insists(self._clock()):
                    return self._others.popleft()
            return self._urgent.take()

    def _take_urgent(self) -> _Job | None:
        with self._lock:
            return self._urgent.take()

    def _run(self, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        outer, self._running = self._running, job
        job.resumed = self._clock()
        job.run()
        self._running = outer
        if job.source is None:
            self._other_ended = self._clock()
        else:
            with self._lock:
                self._urgent.charge(job.source, self._clock() - job.resumed)

    def close(self) -> None:
        """Drop what has not begun. What runs finishes, and the process with it, but nobody waits here."""
        with self._lock:
            self._executor.shutdown(wait=False, cancel_futures=True)
            dropped = [*self._urgent.clear(), *self._others]
            self._others.clear()
        for job in dropped:
            job.future.cancel()
