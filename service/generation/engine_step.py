"""One step of an engine on the device's thread, and the watchdog over it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from models.generation.types import Event, Finished, FinishReason, GenerationEngine, Request

from .event_queue import EventQueue

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Addition:
    """A request to be added to the engine.

    events: where its events go. begin_by: when it has to begin (loop time). admitted: done once the engine has taken or
    refused it. piece_at: when it last gave a piece (loop time). made: tokens that it has so far.
    """

    request: Request
    events: EventQueue
    begin_by: float
    admitted: asyncio.Future[None]
    piece_at: float | None = None
    made: int = 0


@dataclass(frozen=True, slots=True)
class Abort:
    """A request to be ended."""

    request: str
    reason: FinishReason


Command: TypeAlias = Addition | Abort


@dataclass(slots=True)
class StepResult:
    """The result of a step.

    added: what was handed to the engine, with the error if it was refused. idle: whether another step would do nothing.
    failure: what the step raised; lost: the requests that were in the engine then, which has dropped them. seconds: of
    the step itself, None if there was nothing to do. completions, prompt_tokens: what it computed.
    """

    added: list[tuple[Addition, Exception | None]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    idle: bool = False
    failure: BaseException | None = None
    lost: list[str] = field(default_factory=list)
    seconds: float | None = None
    completions: int = 0
    prompt_tokens: int = 0


def run_step(
    engine: GenerationEngine, commands: deque[Command], inside: set[str], watchdog: "StepWatchdog"
) -> StepResult:
    """Apply the commands, oldest first, and step once. Raises nothing.

    inside: the ids of the requests in the engine, kept from step to step.
    """
    result = StepResult()
    try:
        while commands:
            _apply(engine, commands.popleft(), result)
        inside.update(added.request.id for added, refusal in result.added if refusal is None)
        if not engine.is_idle:
            started = time.perf_counter()
            with watchdog.step():
                result.events = engine.step()
            result.seconds = time.perf_counter() - started
            result.completions, result.prompt_tokens = engine.load.step_decodes, engine.load.step_prompt_tokens
        result.idle = engine.is_idle
    except BaseException as error:  # a panic in Rust is no Exception, and nobody would answer for it
        result.failure, result.lost = error, sorted(inside)
        _drop(engine, result.lost)
    inside.difference_update(event.request for event in result.events if isinstance(event, Finished))
    inside.difference_update(result.lost)
    return result


def _drop(engine: GenerationEngine, requests: Iterable[str]) -> None:
    """At once: the next step, with requests that did nothing wrong, may begin before this one's result is seen."""
    for request in requests:
        with suppress(Exception):
            engine.abort(request, "error")


def _apply(engine: GenerationEngine, command: Command, result: StepResult) -> None:
    if isinstance(command, Abort):
        engine.abort(command.request, command.reason)
        return
    try:
        engine.add(command.request)
    except Exception as error:
        result.added.append((command, error))
    else:
        result.added.append((command, None))


@dataclass(eq=False)
class StepWatchdog:
    """Logs a step that takes too long, while it runs and when it has ended. running: how many requests depend on it.

    One timer runs while steps are under way or due; a step that ends in time costs two assignments.
    """

    model: str
    limit_s: float
    running: Callable[[], int]
    _began: float | None = None
    _expected: int = 0
    _timer: asyncio.TimerHandle | None = None
    _logged: bool = False

    @property
    def stuck_s(self) -> float:
        """How long the present step has been running, if that is too long; else 0."""
        elapsed = self._elapsed_s()
        return elapsed if elapsed >= self.limit_s else 0.0

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Around the wait for a step; in the event loop."""
        self._expected += 1
        if self._timer is None:
            self._check_in(self.limit_s)
        try:
            yield
        finally:
            self._expected -= 1

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around the step itself; on the device's thread."""
        self._began = time.monotonic()
        try:
            yield
        finally:
            self._began = None

    def ended(self, seconds: float) -> None:
        """Log the end of a step that was logged as too long; in the event loop. seconds: that it took."""
        if self._logged:
            self._logged = False
            log.warning("step.stuck_ended", model=self.model, seconds=round(seconds, 3))

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()

    def _elapsed_s(self) -> float:
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    def _check_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._check)

    def _check(self) -> None:
        self._timer = None
        if not self._expected:
            return
        elapsed = self._elapsed_s()
        if elapsed >= self.limit_s:
            self._logged = True
            running = self.running()
            log.error("step.stuck", model=self.model, seconds=round(elapsed, 3), running=running)
            elapsed = 0.0
        self._check_in(self.limit_s - elapsed)
