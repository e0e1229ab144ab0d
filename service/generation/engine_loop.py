"""One engine at work: turn by turn on the device's thread, while there is something to do.

Owns the requests in the engine and tells each one's call of its events. Knows no wire and no prompt.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Protocol

import structlog

from models.errors import DeviceFailed
from models.generation.base import GenerationEngine
from models.generation.errors import DuplicateRequest, EngineFull
from models.generation.request import Finished, FinishReason, Piece, Request, Scored, Usage
from subjects.errors import Busy, Cancelled, DeadlinePassed, Unavailable

from ..busy import MARGIN, milliseconds
from ..runtime.change import Change
from ..runtime.device_thread import DeviceThread
from ..runtime.watchdog import Watchdog
from .engine_step import Abort, Addition, Command, StepResult, run_step
from .event_queue import LIMIT_CHARS, EventQueue
from .step_times import GenerationTimes

log = structlog.get_logger(__name__)

TURNS_AHEAD = 2
"""One runs, one waits at the device: what a turn gave is told while the next one computes."""


class StepObserver(Protocol):
    """Who hears of every step, every piece but a text's first, every end and every refusal. Times in seconds."""

    def stepped(self, model: str, seconds: float) -> None: ...

    def went_on(self, model: str, seconds: float) -> None: ...

    def completed(self, model: str, finished: Finished) -> None: ...

    def refused(self, model: str) -> None: ...


class StepFailed(Exception):
    """The engine failed as a whole; the log tells how."""


class EngineLoop:
    """`add` and `abort` ask, `run` works until it is cancelled. ended: how many requests have left the engine."""

    def __init__(
        self, engine: GenerationEngine, device: DeviceThread, observer: StepObserver, stuck_step_s: float
    ) -> None:
        self.ended = 0
        self.watchdog = Watchdog(engine.facts.model, stuck_step_s, lambda: engine.load.running)
        self._engine = engine
        self._model = engine.facts.model
        self._device = device
        self._observer = observer
        self._asked: dict[str, Addition] = {}
        self._departed: set[str] = set()
        self._inside: set[str] = set()  # the turns' own
        self._commands: deque[Command] = deque()
        self._wanted = asyncio.Event()
        self._left = Change()
        self._left_at = self._told_at = 0.0
        self._gap_s = 0.1
        self._times = GenerationTimes(engine.facts.max_running)
        self._stopped = False

    def refusal(self, full: EngineFull) -> Busy:
        """What to answer for it: ask again when a place will be free, going by how long that took lately."""
        return self._busy(str(full), self._gap_s)

    def _busy(self, why: str, retry_s: float) -> Busy:
        self._observer.refused(self._model)
        return Busy(why, retry_after_ms=milliseconds(retry_s))

    def require_place(self) -> None:
        """Refuse at once where the engine holds all that it may: a step may take long. Raises EngineFull."""
        places = self._engine.facts.places
        if places and len(self._asked) >= places:
            raise EngineFull(f"{places} requests run or wait")

    def begin_by(self, request: Request, deadline: float, streamed: bool) -> float:
        """When a request has to begin to be ready by its deadline, both in loop time.

        Raises Busy where those that came before it leave no time for it, whatever it would cost. streamed: of one that
        is too long for its deadline even alone the beginning is worth something, and it need only begin before it.
        """
        before = self._before(request)
        ready = self._times.ready(request, before, len(self._asked))
        left_s = deadline - asyncio.get_running_loop().time()
        whole = ready.alone_s <= left_s
        needed_s = MARGIN * (ready.begins_s if streamed and not whole else ready.ends_s)
        if before and needed_s > left_s > 0:
            why = f"{len(self._asked)} requests run or wait: this one would take {needed_s:.1f} s, past its deadline"
            raise self._busy(why, needed_s - left_s)
        return deadline - ready.alone_s if whole else deadline

    def _before(self, request: Request) -> list[Addition]:
        """Those that run or wait and come before a request that is asked for now."""
        its = sum(asked.request.caller == request.caller for asked in self._asked.values())
        return [asked for number, asked in self._in_turn() if number <= its]

    def _in_turn(self) -> list[tuple[int, Addition]]:
        """Those that run or wait in their order, callers taking turns; each with its number among its caller's."""
        asked_of: Counter[str] = Counter()
        numbered = []
        for asked in self._asked.values():
            numbered.append((asked_of[asked.request.caller], asked))
            asked_of[asked.request.caller] += 1
        return sorted(numbered, key=itemgetter(0))

    async def add(self, request: Request, outbox: EventQueue, begin_by: float = math.inf) -> None:
        """Hand a request to the engine; its events go into the outbox from then on. begin_by: see there.

        Raises what the engine refuses it with, and Unavailable when nothing runs any more.
        """
        if self._stopped:
            raise _shutting_down()
        if request.id in self._asked:
            raise DuplicateRequest(request.id)
        self.require_place()
        asked = Addition(request, outbox, begin_by, asyncio.get_running_loop().create_future())
        self._asked[request.id] = asked
        self._command(asked)
        await asked.admitted

    def abort(self, request: str, reason: FinishReason) -> None:
        """Have a request end; its Finished comes as always."""
        if request in self._asked:
            self._command(Abort(request, reason))

    def leave(self, request: str) -> None:
        """Nobody wants to hear of this request any more."""
        if asked := self._asked.pop(request, None):
            asked.admitted.cancel()
            self._departed.add(request)  # its end still comes, and counts
            self._command(Abort(request, "cancelled"))

    async def another_ended(self, ended: int) -> None:
        """Return once more than so many requests have left the engine."""
        while self.ended == ended and not self._stopped:
            await self._left.wait()

    async def run(self) -> None:
        """Turn after turn for ever, while there is something to do."""
        seats = asyncio.Semaphore(TURNS_AHEAD)
        try:
            async with asyncio.TaskGroup() as turns:
                while True:
                    await seats.acquire()
                    await self._wanted.wait()
                    turns.create_task(self._take_turn(seats))
        finally:
            self._stop()

    async def _take_turn(self, seats: asyncio.Semaphore) -> None:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        with self.watchdog.turn():
            turn = await self._device.run(
                run_step,
                self._engine,
                self._commands,
                self._inside,
                self.watchdog,
                urgent=True,
                source=f"generate.{self._model}",
            )
        if turn.seconds is not None and turn.texts + turn.prompt_tokens:
            # By the clock on the wall: others have the device in between.
            self._times.stepped(turn.texts, turn.prompt_tokens, loop.time() - max(asked_at, self._told_at))
        self._told_at = loop.time()
        self._tell(turn)
        self._drop_hopeless()
        seats.release()

    def _command(self, command: Command) -> None:
        self._commands.append(command)
        if not self._wanted.is_set():
            self._left_at = asyncio.get_running_loop().time()
        self._wanted.set()

    def _tell(self, turn: StepResult) -> None:
        if isinstance(turn.failure, DeviceFailed):
            raise turn.failure  # ends the stepping, and with it the worker
        for asked, refusal in turn.added:
            self._admit(asked, refusal)
        for event in turn.events:
            if isinstance(event, Finished):
                self._end(event)
            else:
                self._deliver(event)
        if turn.seconds is not None:
            self._observer.stepped(self._model, turn.seconds)
            self.watchdog.ended(turn.seconds)
        if turn.failure is not None:
            self._fail(turn.failure, turn.lost)
        # An engine that fails at every step is not asked for another until somebody wants something of it.
        if self._commands or (self._asked if turn.failure else not turn.idle):
            self._wanted.set()
        else:
            self._wanted.clear()

    def _drop_hopeless(self) -> None:
        """End what waits to begin and can no longer be ready in time: nobody would have anything of it."""
        now = asyncio.get_running_loop().time()
        running = self._engine.facts.max_running
        waiting = self._in_turn()[running:] if running < len(self._asked) else []
        for _, asked in waiting:
            if now > asked.begin_by and not asked.made:
                asked.outbox.fail(DeadlinePassed("too many were before it: the text cannot be ready by its deadline"))
                self.leave(asked.request.id)

    def _admit(self, asked: Addition, refusal: Exception | None) -> None:
        if refusal is not None and self._asked.get(asked.request.id) is asked:
            del self._asked[asked.request.id]
        if asked.admitted.done():  # whoever asked has left, or cancelled it
            if refusal is not None:
                self._departed.discard(asked.request.id)
                asked.outbox.put(Finished(asked.request.id, "cancelled", Usage(0, 0, 0)))
        elif refusal is not None:
            asked.admitted.set_exception(refusal)
        else:
            asked.admitted.set_result(None)

    def _deliver(self, event: Scored | Piece) -> None:
        asked = self._asked.get(event.request)
        if asked is None:
            return
        if isinstance(event, Piece):
            now = asyncio.get_running_loop().time()
            if asked.told_at is not None:
                self._observer.went_on(self._model, now - asked.told_at)
            asked.told_at = now
            asked.made += event.tokens
        if not asked.outbox.put(event):
            self._give_up(asked.outbox)

    def _end(self, finished: Finished) -> None:
        now = asyncio.get_running_loop().time()
        self._gap_s += 0.1 * (now - self._left_at - self._gap_s)
        self._left_at = now
        self.ended += 1
        self._left.set()
        asked = self._asked.pop(finished.request, None)
        if asked is not None:
            self._times.ended(asked.request, finished)
            asked.outbox.put(finished)
        if asked is not None or finished.request in self._departed:
            self._departed.discard(finished.request)
            self._observer.completed(self._model, finished)

    def _give_up(self, outbox: EventQueue) -> None:
        """Whoever should take what is in the outbox does not."""
        log.warning("reader.too_slow", model=self._model, unsent_chars=LIMIT_CHARS)
        outbox.fail(Cancelled(f"more than {LIMIT_CHARS} characters waited to be sent: the reader is too slow"))
        for request in outbox.live:
            self.abort(request, "cancelled")

    def _fail(self, failure: BaseException, lost: Sequence[str]) -> None:
        """A step raised: all that were in the engine end."""
        log.error("step.failed", model=self._model, requests=len(lost), exc_info=failure)
        for request in lost:
            self._end(Finished(request, "error", Usage(0, 0, 0), error=StepFailed(self._model)))

    def _stop(self) -> None:
        self._stopped = True
        self.watchdog.close()
        for asked in self._asked.values():
            asked.outbox.fail(_shutting_down())
            if not asked.admitted.done():
                asked.admitted.set_exception(_shutting_down())
        self._asked.clear()
        self._departed.clear()
        self._left.set()


def _shutting_down() -> Unavailable:
    return Unavailable("this worker is shutting down; ask again", retry_after_ms=100)
