"""One thread per device, which runs every forward pass.

Urgent jobs go first, also inside a job that is not urgent, wherever that one yields. The sources of urgent jobs share
the device evenly: the one that has had the least of its time goes first.
"""

import asyncio
import functools
import math
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar, TypeVarTuple, Unpack

from .activity import Activity

ArgTs = TypeVarTuple("ArgTs")
ResultT = TypeVar("ResultT")

AGE_S = 1.0
"""How long other jobs give way to urgent ones before they take their share: a burst passes, a flood does not."""
SHARE = 0.2
"""The part of the device's time that they take from then on."""


@dataclass(slots=True, eq=False)
class _Job:
    """source: whose urgent job it is; None if it is not urgent."""

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
    """Device time, in seconds, that is owed to the jobs that are not urgent together; it grows while they wait."""

    def __init__(self) -> None:
        self._owed_s = 0.0
        self._waiting_since: float | None = None
        self._ended = -math.inf

    def wait(self, now: float) -> None:
        """Note that a job waits, or gives way. After a pause nothing is owed."""
        if self._waiting_since is None:
            if now - self._ended > AGE_S:
                self._owed_s = 0.0
            self._waiting_since = now

    def begin(self, now: float) -> None:
        """Note that a job has the device from now on."""
        self._owed_s = min(self._owed(now), 2 * AGE_S * SHARE)
        self._waiting_since = None

    def end(self, now: float, seconds: float) -> None:
        """Charge the job for the time that it has had the device. Idle time is not charged."""
        self._owed_s = max(0.0, self._owed_s - seconds * (1 - SHARE))
        self._ended = now

    def is_due(self, now: float) -> bool:
        """Whether these jobs have given way for long enough, for what they have had."""
        return self._owed(now) > AGE_S * SHARE

    def _owed(self, now: float) -> float:
        return self._owed_s + (0.0 if self._waiting_since is None else (now - self._waiting_since) * SHARE)


class _FairQueue:
    """Urgent jobs: each source's in their order, the source that has had the least time first. Not thread-safe.

    This is start-time fair queueing over measured seconds.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[_Job]] = {}
        self._used_s: defaultdict[str, float] = defaultdict(float)
        self._reached_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def put(self, source: str, job: _Job) -> None:
        """Add a job. A source that had none begins level with the others: time not used is not saved up."""
        if source not in self._waiting:
            self._waiting[source] = deque()
            self._used_s[source] = max(self._used_s[source], self._reached_s)
        self._waiting[source].append(job)

    def take(self) -> _Job | None:
        """The next job, None if none waits."""
        if not self._waiting:
            return None
        source = min(self._waiting, key=self._used_s.__getitem__)
        self._reached_s = self._used_s[source]
        job = self._waiting[source].popleft()
        if not self._waiting[source]:
            del self._waiting[source]
        return job

    def charge(self, source: str, seconds: float) -> None:
        """Charge a source for the time that a job of it has had the device."""
        self._used_s[source] += seconds

    def clear(self) -> list[_Job]:
        """Take all jobs."""
        jobs = [job for waiting in self._waiting.values() for job in waiting]
        self._waiting.clear()
        return jobs


class DeviceThread:
    """Runs functions one after another: urgent ones by source, then the others in their order.

    activity: goes on while functions run or wait.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.activity = Activity()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._clock = clock
        self._lock = threading.Lock()
        self._urgent = _FairQueue()
        self._others: deque[_Job] = deque()
        self._share = _Share()
        self._running: _Job | None = None
        self._other: _Job | None = None

    async def run(
        self, function: Callable[[Unpack[ArgTs]], ResultT], *arguments: *ArgTs, urgent: bool = False, source: str = ""
    ) -> ResultT:
        """The function's result, or its exception. A caller that is cancelled does not stop a function that runs.

        An urgent one may run inside another that calls `yield_point`. source: whose urgent function it is; each source
        gets as much time as any other.
        """
        job = _Job(functools.partial(function, *arguments), source if urgent else None)
        with self._lock:
            self._executor.submit(self._run_next)
            if urgent:
                self._urgent.put(source, job)
            else:
                self._others.append(job)
                if self._other is None:
                    self._share.wait(self._clock())
        with self.activity.going_on():
            result: ResultT = await asyncio.wrap_future(job.future)
        return result

    def yield_point(self) -> None:
        """Run the urgent jobs that wait; called on the device's thread, by the job that runs there.

        Returns at once in an urgent job, and in one that has given way for long enough.
        """
        job = self._running
        if job is None or job.source is not None or not self._urgent:
            return
        now = self._clock()
        self._share.end(now, now - job.resumed)
        self._share.wait(now)
        while not self._share.is_due(self._clock()) and (urgent := self._take_urgent()):
            self._run(urgent)
        job.resumed = self._clock()
        self._share.begin(job.resumed)

    def _run_next(self) -> None:
        """Run the next job, if there is one: it may have run inside another job."""
        if job := self._take():
            self._run(job)

    def _take(self) -> _Job | None:
        with self._lock:
            if self._others and (not self._urgent or self._share.is_due(self._clock())):
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
            self._share.begin(job.resumed)
        job.run()
        self._running = outer
        now = self._clock()
        with self._lock:
            if job.source is not None:
                self._urgent.charge(job.source, now - job.resumed)
                return
            self._other = None
            self._share.end(now, now - job.resumed)
            if self._others:
                self._share.wait(now)

    def close(self) -> None:
        """Drop what has not begun. A job that runs finishes, but nobody waits for it."""
        with self._lock:
            self._executor.shutdown(wait=False, cancel_futures=True)
            dropped = [*self._urgent.clear(), *self._others]
            self._others.clear()
        for job in dropped:
            job.future.cancel()
