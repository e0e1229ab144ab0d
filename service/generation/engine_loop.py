"""The loop that steps one engine on the device's thread while it has requests, and tells each call of its events."""

import asyncio
import math
from collections import Counter, deque
from operator import itemgetter

import structlog

from models.errors import DeviceFailed
from models.generation.errors import DuplicateRequest, EngineFull
from models.generation.types import Finished, FinishReason, GenerationEngine, Piece, Request, Scored, Usage
from subjects.errors import Busy, Cancelled, DeadlinePassed

from ..admission import past_deadline, retry_after_ms, shutting_down
from ..runtime.background import Change
from ..runtime.device_thread import DeviceThread
from ..telemetry import GenerationTelemetry
from .engine_step import Abort, Addition, Command, StepResult, StepWatchdog, run_step
from .event_queue import LIMIT_CHARS, EventQueue
from .step_times import GenerationTimes

log = structlog.get_logger(__name__)

STEPS_AHEAD = 2
"""One runs, one waits at the device: the events of a step are delivered while the next one computes."""


class EngineFailed(Exception):
    """The engine failed as a whole; the cause is in the log."""


class EngineLoop:
    """`add` and `abort` queue commands, `run` steps until it is cancelled.

    ended: how many requests have left the engine.
    """

    def __init__(
        self, engine: GenerationEngine, device: DeviceThread, telemetry: GenerationTelemetry, stuck_step_s: float
    ) -> None:
        self.ended = 0
        self.watchdog = StepWatchdog(engine.facts.model, stuck_step_s, lambda: engine.load.running)
        self._engine = engine
        self._model = engine.facts.model
        self._device = device
        self._telemetry = telemetry
        self._requests: dict[str, Addition] = {}
        self._abandoned: set[str] = set()
        self._inside: set[str] = set()  # of run_step alone
        self._commands: deque[Command] = deque()
        self._work = asyncio.Event()
        self._request_ended = Change()
        self._ended_at = self._step_ended_at = 0.0
        self._end_interval_s = 0.1
        self._times = GenerationTimes(engine.facts.max_running)
        self._stopped = False

    def refusal(self, full: EngineFull) -> Busy:
        """The wire error for it: ask again when a request will have ended, at the recent rate."""
        self._telemetry.refused(self._model)
        return Busy(str(full), retry_after_ms=retry_after_ms(self._end_interval_s))

    def require_slot(self) -> None:
        """Refuse at once if the engine holds all that it may: a step may take long. Raises EngineFull."""
        slots = self._engine.facts.max_requests
        if slots and len(self._requests) >= slots:
            raise EngineFull(f"{slots} requests run or wait")

    def begin_by(self, request: Request, deadline: float, streamed: bool) -> float:
        """When a request has to begin to be ready by its deadline, both in loop time.

        streamed: if it is too long for its deadline even alone, its beginning is still of use, and it need only begin
        before the deadline. Raises Busy if the requests before it leave it no time.
        """
        before = self._before(request)
        ready = self._times.ready(request, before, len(self._requests))
        left_s = deadline - asyncio.get_running_loop().time()
        whole = ready.alone_s <= left_s
        holds = f"this worker holds {len(self._requests)} requests for model {self._model!r}: one more would take"
        needed_s = ready.begins_s if streamed and not whole else ready.ends_s
        if before and (late := past_deadline(holds, needed_s, left_s)):
            self._telemetry.refused(self._model)
            raise late
        return deadline - ready.alone_s if whole else deadline

    def _before(self, request: Request) -> list[tuple[Request, int]]:
        """Requests that come before one that is made now, each with the tokens that it has."""
        own = sum(other.request.caller == request.caller for other in self._requests.values())
        return [(other.request, other.made) for number, other in self._expected_order() if number <= own]

    def _expected_order(self) -> list[tuple[int, Addition]]:
        """All requests, callers taking turns; each with its number among its caller's.

        An estimate of the scheduler's order, which depends on the cache too and is the device's thread's to read.
        """
        counts: Counter[str] = Counter()
        numbered = []
        for added in self._requests.values():
            numbered.append((counts[added.request.caller], added))
            counts[added.request.caller] += 1
        return sorted(numbered, key=itemgetter(0))

    async def add(self, request: Request, events: EventQueue, begin_by: float = math.inf) -> None:
        """Hand a request to the engine; its events go to `events` from then on. begin_by: see there.

        Raises the engine's refusal, and Unavailable once the loop has ended.
        """
        if self._stopped:
            raise shutting_down()
        if request.id in self._requests:
            raise DuplicateRequest(request.id)
        self.require_slot()
        added = Addition(request, events, begin_by, asyncio.get_running_loop().create_future())
        self._requests[request.id] = added
        self._command(added)
        await added.admitted

    def abort(self, request: str, reason: FinishReason) -> None:
        """End a request; its Finished follows."""
        if request in self._requests:
            self._command(Abort(request, reason))

    def abandon(self, request: str) -> None:
        """End a request whose events nobody wants any more."""
        if added := self._requests.pop(request, None):
            added.admitted.cancel()
            self._abandoned.add(request)  # its end still comes, and is counted
            self._command(Abort(request, "cancelled"))

    async def wait_for_end(self, ended: int) -> None:
        """Return once more than `ended` requests have left the engine."""
        while self.ended == ended and not self._stopped:
            await self._request_ended.wait()

    async def run(self) -> None:
        """Step for ever, while there is something to do."""
        slots = asyncio.Semaphore(STEPS_AHEAD)
        try:
            async with asyncio.TaskGroup() as steps:
                while True:
                    await slots.acquire()
                    await self._work.wait()
                    steps.create_task(self._step(slots))
        finally:
            self._stop()

    async def _step(self, slots: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        with self.watchdog.expecting():
            result = await self._device.run(
                run_step,
                self._engine,
                self._commands,
                self._inside,
                self.watchdog,
                urgent=True,
                source=f"generate.{self._model}",
            )
        if result.seconds is not None and result.completions + result.prompt_tokens:
            # Wall-clock time: others use the device in between.
            seconds = loop.time() - max(began_at, self._step_ended_at)
            self._times.stepped(result.completions, result.prompt_tokens, seconds)
        self._step_ended_at = loop.time()
        self._handle(result)
        self._drop_late()
        slots.release()

    def _command(self, command: Command) -> None:
        self._commands.append(command)
        if not self._work.is_set():
            self._ended_at = asyncio.get_running_loop().time()
        self._work.set()

    def _handle(self, result: StepResult) -> None:
        if isinstance(result.failure, DeviceFailed):
            raise result.failure  # ends the loop, and with it the worker
        for added, refusal in result.added:
            self._admit(added, refusal)
        for event in result.events:
            if isinstance(event, Finished):
                self._end(event)
            else:
                self._deliver(event)
        if result.seconds is not None:
            self._telemetry.stepped(self._model, result.seconds)
            self.watchdog.ended(result.seconds)
        if result.failure is not None:
            log.error("step.failed", model=self._model, requests=len(result.lost), exc_info=result.failure)
            for request in result.lost:
                self._end(Finished(request, "error", Usage(0, 0, 0), error=EngineFailed(self._model)))
        # An engine that fails at every step is not stepped again until there is a command for it.
        if self._commands or (self._requests if result.failure else not result.idle):
            self._work.set()
        else:
            self._work.clear()

    def _drop_late(self) -> None:
        """End requests that have not begun and cannot be ready by their deadline any more."""
        now = asyncio.get_running_loop().time()
        running = self._engine.facts.max_running
        waiting = self._expected_order()[running:] if running < len(self._requests) else []
        for _, added in waiting:
            if now > added.begin_by and not added.made:
                added.events.fail(DeadlinePassed("too many were before it: the text cannot be ready by its deadline"))
                self.abandon(added.request.id)

    def _admit(self, added: Addition, refusal: Exception | None) -> None:
        if refusal is not None and self._requests.get(added.request.id) is added:
            del self._requests[added.request.id]
        if added.admitted.done():  # its call has left, or cancelled it
            if refusal is not None:
                self._abandoned.discard(added.request.id)
                added.events.put(Finished(added.request.id, "cancelled", Usage(0, 0, 0)))
        elif refusal is not None:
            added.admitted.set_exception(refusal)
        else:
            added.admitted.set_result(None)

    def _deliver(self, event: Scored | Piece) -> None:
        added = self._requests.get(event.request)
        if added is None:
            return
        if isinstance(event, Piece):
            now = asyncio.get_running_loop().time()
            if added.piece_at is not None:
                self._telemetry.next_piece(self._model, now - added.piece_at)
            added.piece_at = now
            added.made += event.tokens
        if not added.events.put(event):
            self._end_slow(added.events)

    def _end(self, finished: Finished) -> None:
        now = asyncio.get_running_loop().time()
        self._end_interval_s += 0.1 * (now - self._ended_at - self._end_interval_s)
        self._ended_at = now
        self.ended += 1
        self._request_ended.set()
        added = self._requests.pop(finished.request, None)
        if added is not None:
            self._times.ended(added.request, finished)
            added.events.put(finished)
        if added is not None or finished.request in self._abandoned:
            self._abandoned.discard(finished.request)
            self._telemetry.completed(self._model, finished)

    def _end_slow(self, events: EventQueue) -> None:
        """End a call that does not take its events."""
        log.warning("reader.too_slow", model=self._model, unsent_chars=LIMIT_CHARS)
        events.fail(Cancelled(f"more than {LIMIT_CHARS} characters waited to be sent: the reader is too slow"))
        for request in events.live:
            self.abort(request, "cancelled")

    def _stop(self) -> None:
        self._stopped = True
        self.watchdog.close()
        for added in self._requests.values():
            added.events.fail(shutting_down())
            if not added.admitted.done():
                added.admitted.set_exception(shutting_down())
        self._requests.clear()
        self._abandoned.clear()
        self._request_ended.set()
