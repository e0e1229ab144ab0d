"""One turn of an engine on the device's thread: what was asked since the last one is applied, then it steps.

Knows no queue of calls; what comes of a turn is told in the event loop (engine_loop.py).
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from models.generation.base import GenerationEngine
from models.generation.request import Event, Finished, FinishReason, Request

from ..runtime.watchdog import Watchdog
from .event_queue import EventQueue


@dataclass(slots=True, eq=False)
class Addition:
    """A request to be added, and who waits for it. told_at: when it last gave a piece; begin_by: when it
    has to begin (loop time); made: how many tokens it has."""

    request: Request
    outbox: EventQueue
    begin_by: float
    admitted: asyncio.Future[None]
    told_at: float | None = None
    made: int = 0


@dataclass(frozen=True, slots=True)
class Abort:
    """A request to be ended."""

    request: str
    reason: FinishReason


Command: TypeAlias = Addition | Abort


@dataclass(slots=True)
class StepResult:
    """What came of a turn. added: what was handed to the engine, and why not, where it did not take it.

    idle: whether another turn would do nothing. failure: what the step raised, and lost: all that were in the engine
    then, which lets go of them. seconds: of the step, if there was one; texts, prompt_tokens: what it computed.
    """

    added: list[tuple[Addition, Exception | None]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    idle: bool = False
    failure: BaseException | None = None
    lost: list[str] = field(default_factory=list)
    seconds: float | None = None
    texts: int = 0
    prompt_tokens: int = 0


def run_step(engine: GenerationEngine, commands: deque[Command], inside: set[str], watchdog: Watchdog) -> StepResult:
    """Apply the commands, oldest first, and step once. Raises nothing.

    inside: the ids of what is in the engine, from turn to turn.
    """
    turn = StepResult()
    try:
        while commands:
            _apply(engine, commands.popleft(), turn)
        inside.update(asked.request.id for asked, refusal in turn.added if refusal is None)
        if not engine.is_idle:
            started = time.perf_counter()
            with watchdog.step():
                turn.events = engine.step()
            turn.seconds = time.perf_counter() - started
            turn.texts, turn.prompt_tokens = engine.load.step_texts, engine.load.step_prompt_tokens
        turn.idle = engine.is_idle
    except BaseException as error:  # a panic in Rust is no Exception, and nobody would answer for it
        turn.failure, turn.lost = error, sorted(inside)
        _let_go(engine, turn.lost)
    inside.difference_update(event.request for event in turn.events if isinstance(event, Finished))
    inside.difference_update(turn.lost)
    return turn


def _let_go(engine: GenerationEngine, requests: Iterable[str]) -> None:
    """At once: the next turn may come before anybody has heard of this one, with requests that did nothing wrong."""
    for request in requests:
        with suppress(Exception):
            engine.abort(request, "error")


def _apply(engine: GenerationEngine, command: Command, turn: StepResult) -> None:
    if isinstance(command, Abort):
        engine.abort(command.request, command.reason)
        return
    try:
        engine.add(command.request)
    except Exception as error:
        turn.added.append((command, error))
    else:
        turn.added.append((command, None))
