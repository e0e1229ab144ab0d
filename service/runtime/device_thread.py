"""One thread per device: every forward pass runs on it, in turn. Knows nothing of what it runs.

Urgent jobs go first, and in the middle of another wherever that one lets them. Whoever has them shares the device
evenly: the source that has had the least of its time goes first.
"""

import asyncio
import functools
import math
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
    """source: with whose urgent jobs it takes turns; None for one that is not urgent."""

    call: Callable[[], Any]
    source: str | None
    future: Future[Any] = field(default_factory=Future)
    resumed: float = 0.0

    def run(self) -> None:
        try:
            result = self.call()
        except BaseException as error:
            self.future.set_exception(error)
            self = None  # type: ignore[assignment]  # else error and job keep each other, and the tensors in the frames
        else:
            self.future.set_result(result)


class _Share:
    """What the jobs that are not urgent are owed together, in seconds of the device: it grows while they wait."""

    def __init__(self) -> None:
        self._owed_s = 0.0
        self._waiting_since: float | None = None
        self._ended = -math.inf

    def waits(self, now: float) -> None:
        """A job waits, or gives way. Those that come after a pause begin anew."""
        if self._waiting_since is None:
            if now - self._ended > AGE_S:
                self._owed_s = 0.0
            self._waiting_since = now

    def runs(self, now: float) -> None:
        """One has the device from now on."""
        self._owed_s = min(self._owed(now), 2 * AGE_S * SHARE)
        self._waiting_since = None

    def ran(self, now: float, seconds: float) -> None:
        """It has had it for so long until now. What nobody else wanted makes no debt."""
        self._owed_s = max(0.0, self._owed_s - seconds * (1 - SHARE))
        self._ended = now

    def insists(self, now: float) -> bool:
        """Whether they have given way for long enough, for what they have had."""
        return self._owed(now) > AGE_S * SHARE

    def _owed(self, now: float) -> float:
        return self._owed_s + (0.0 if self._waiting_since is None else (now - self._waiting_since) * SHARE)


class DeviceThread:
    """Runs functions one after another: urgent ones first, each source's, and the others, in their order."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._clock = clock
        self._lock = threading.Lock()
        self._urgent = FairQueue[_Job]()
        self._others: deque[_Job] = deque()
        self._share = _Share()
        self._running: _Job | None = None
        self._other: _Job | None = None

    async def run(
        self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs, urgent: bool = False, source: str = ""
    ) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop a function that runs.

        An urgent one may run inside another that calls `yield_point`; raises whatever it raises to its own caller.
        source: with whose urgent ones it takes turns; each source gets as much time as any other.
        """
        job = _Job(functools.partial(function, *arguments), source if urgent else None)
        with self._lock:
            self._executor.submit(self._turn)
            if urgent:
                self._urgent.put(source, job)
            else:
                self._others.append(job)
                if self._other is None:
                    self._share.waits(self._clock())
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
        self._share.ran(now, now - job.resumed)
        self._share.waits(now)
        while not self._share.insists(self._clock()) and (urgent := self._take_urgent()):
            self._run(urgent)
        job.resumed = self._clock()
        self._share.runs(job.resumed)

    def _turn(self) -> None:
        """Run the next job, if there is one: what this turn was for may have run inside another job."""
        if job := self._take():
            self._run(job)

    def _take(self) -> _Job | None:
        with self._lock:
            if self._others and (not self._urgent or self._share.insists(self._clock())):
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
        if job.source is None:
            self._other = job
            self._share.runs(job.resumed)
        job.run()
        self._running = outer
        now = self._clock()
        with self._lock:
            if job.source is not None:
                self._urgent.charge(job.source, now - job.resumed)
                return
            self._other = None
            self._share.ran(now, now - job.resumed)
            if self._others:
                self._share.waits(now)

    def close(self) -> None:
        """Drop what has not begun. What runs finishes, but nobody waits for it."""
        with self._lock:
            self._executor.shutdown(wait=False, cancel_futures=True)
            dropped = [*self._urgent.clear(), *self._others]
            self._others.clear()
        for job in dropped:
            job.future.cancel()
