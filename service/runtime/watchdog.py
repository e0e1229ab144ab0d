"""Tells of a step that takes too long: while it does, and when it has ended. Knows nothing of what a step does."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger(__name__)


class Watchdog:
    """Watches the steps of one model. running: how many requests depend on them.

    One timer runs while steps are under way or about to be; a step that ends in time costs two assignments.
    """

    def __init__(self, model: str, limit_s: float, running: Callable[[], int]) -> None:
        self._model = model
        self._limit_s = limit_s
        self._running = running
        self._began: float | None = None
        self._turns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

    @property
    def stuck_s(self) -> float:
        """For how long the present step has been running, if that is too long; else 0."""
        began = self._began
        elapsed = 0.0 if began is None else time.monotonic() - began
        return elapsed if elapsed >= self._limit_s else 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around the wait for a step; in the event loop."""
        self._turns += 1
        if self._timer is None:
            self._look_in(self._limit_s)
        try:
            yield
        finally:
            self._turns -= 1

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the step itself; on the device's thread."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began = None

    def ended(self, seconds: float) -> None:
        """A step has ended after so long; in the event loop."""
        if self._told:
            self._told = False
            log.warning("step.stuck_ended", model=self._model, seconds=round(seconds, 3))

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._turns:
            return
        began = self._began
        elapsed = 0.0 if began is None else time.monotonic() - began
        if elapsed >= self._limit_s:
            self._told = True
            running = self._running()
            log.error("step.stuck", model=self._model, seconds=round(elapsed, 3), running=running)
            elapsed = 0.0
        self._look_in(self._limit_s - elapsed)
