"""A worker's lease of a job. Only its holder can change the job, and it hears of cancellations.

Each lease is one attempt. Once another worker takes the job, or the job has ended, changes by the former holder fail.
"""

import asyncio
import functools
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from pydantic import ValidationError

from subjects.errors import MLError, NotFound
from subjects.jobs import TERMINAL, Job

from ..runtime.background import background_task
from .retry import TROUBLE, retry_while_down
from .store import Changing, JobStore
from .watch import job_events

log = structlog.get_logger(__name__)

PROGRESS_S = 1.0
"""The least time between two writes of a training's progress."""
MAX_NOTES = 50


class LeaseLost(Exception):
    """Another worker has the job, or the job has ended: this worker stops working on it."""


class PromotionRequested(Exception):
    """A promotion was requested after the job's end had been decided: decide again."""


class JobLease:
    """The right to work on a job and to change it, made by `begin`. job: its state when it was last read.

    ended: set once the lease is lost or the job is to be cancelled; `cancelled` tells which.
    """

    def __init__(self, store: JobStore, nc: Client, job: Job) -> None:
        self.job = job
        self.ended = asyncio.Event()
        self.cancelled = False
        self._store = store
        self._nc = nc
        self._notes = list(job.notes)
        self._progress: dict[str, Any] = {}
        self._noted = asyncio.Event()

    @classmethod
    async def begin(cls, store: JobStore, nc: Client, job_id: str, worker: str, attempts: int) -> Self:
        """Take a job. Raises LeaseLost if it has ended, which it does after too many attempts."""
        mine: list[int] = []

        def begun(job: Job) -> Job:
            if mine and (job.worker, job.attempt, job.state) == (worker, mine[-1], "collecting"):
                return job  # it was written; only the reply was lost
            if job.attempt >= attempts:
                return job.model_copy(update={"state": "failed", "reason": _too_many_attempts(job)})
            mine.append(job.attempt + 1)
            taken = {"worker": worker, "attempt": job.attempt + 1, "state": "collecting", "reason": None}
            return job.model_copy(update=taken)

        job = await retry_while_down(lambda: store.change(job_id, begun))
        if job.state in TERMINAL:
            log.info("job.over", job=job.id, state=job.state, reason=job.reason)
            raise LeaseLost
        return cls(store, nc, job)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Self]:
        """Inside, cancellations set `ended`, and progress is written."""
        async with (
            job_events(self._nc, self.job.id, self._on_event),
            background_task(lambda closing: self._write_progress(), f"progress.{self.job.id}"),
        ):
            await self.check()  # for what happened before the subscription
            yield self

    async def check(self) -> None:
        """Read the job: an event may have been lost with the connection."""
        try:
            job = await self._store.get(self.job.id)
        except (*TROUBLE, MLError) as error:
            log.warning("job.unreadable", job=self.job.id, error=repr(error))
            return
        if job is None:
            self.ended.set()
        else:
            self._take_over(job)

    async def update(self, **fields: Any) -> None:
        """Change fields of the job; retried while the server is down. promote: must be the job's own value.

        Raises LeaseLost, and PromotionRequested if `promote` differs.
        """
        changed = {**self._pop_progress(), **fields}

        def changing(job: Job) -> Job:
            if fields.get("promote", job.promote) != job.promote:
                raise PromotionRequested
            return job.model_copy(update=changed)

        await retry_while_down(lambda: self._change(changing))

    def progress(self, **fields: Any) -> None:
        """Change fields of the job within a second, if nothing newer replaces them before."""
        self._progress |= {name: value if _is_finite(value) else None for name, value in fields.items()}
        self._noted.set()

    def note(self, text: str) -> None:
        """Add a note for the caller, within a second."""
        if text not in self._notes and len(self._notes) < MAX_NOTES:
            self._notes.append(text)
            self.progress(notes=list(self._notes))

    async def hand_back(self, reason: str, *, counted: bool) -> None:
        """Queue the job again, for any worker. counted: whether this attempt counts. Raises LeaseLost."""
        attempt = self.job.attempt if counted else self.job.attempt - 1
        await self.update(state="queued", reason=reason, attempt=attempt, eta_s=None)

    async def _change(self, changing: Changing) -> None:
        def changed(job: Job) -> Job:
            if not self._is_mine(job):
                raise LeaseLost
            return changing(job)

        try:
            job = await self._store.change(self.job.id, changed)
        except NotFound:
            raise LeaseLost from None
        if job.state in TERMINAL and changing(job) != job:
            self.ended.set()
            raise LeaseLost
        self._take_over(job)

    async def _write_progress(self) -> None:
        while True:
            await self._noted.wait()
            fields = self._pop_progress()
            try:
                await self._change(functools.partial(Job.model_copy, update=fields))
            except TROUBLE as error:
                log.debug("job.write_failed", job=self.job.id, error=repr(error))
                self.progress(**{**fields, **self._progress})
            except LeaseLost:
                self.ended.set()
                return
            await asyncio.sleep(PROGRESS_S)

    def _pop_progress(self) -> dict[str, Any]:
        fields, self._progress = self._progress, {}
        self._noted.clear()
        return fields

    async def _on_event(self, msg: Msg) -> None:
        """An event is only a hint, because it may be late."""
        try:
            job = Job.model_validate_json(msg.data)
        except ValidationError:
            log.debug("job.event_unreadable", job=self.job.id)
            return
        if job.cancel_requested or not self._is_mine(job):
            await self.check()

    def _take_over(self, job: Job) -> None:
        if not self._is_mine(job):
            self.ended.set()
            return
        self.job = job
        if job.cancel_requested:
            self.cancelled = True
            self.ended.set()

    def _is_mine(self, job: Job) -> bool:
        return job.worker == self.job.worker and job.attempt == self.job.attempt


def _too_many_attempts(job: Job) -> str:
    last = f"; the last time: {job.reason}" if job.reason else ""
    return f"it was begun {job.attempt} times and did not come to its end{last}"


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
