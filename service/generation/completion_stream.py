"""The completions of one call: let into the engine one after the other, and out of it when the call leaves.

Knows no wire and no prompt; what is to be completed comes as requests of token ids.
"""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeAlias

from models.errors import ModelError
from models.generation.errors import EngineFull
from models.generation.request import Event, Finished, FinishReason, Request, Usage

from .engine_loop import EngineLoop
from .event_queue import EventQueue

PACE_S = 0.02
"""How long later pieces of a stream may wait for company; the first goes out at once."""
WHOLE_PACE_S = 0.25
"""And where all of them make one reply, which nobody sees before its end."""

Requests: TypeAlias = AsyncGenerator[Request | Finished, None]
"""What is to be completed, in order; what cannot be made a request has its end instead."""


class CompletionStream:
    """`events` completes what it is given; leaving it early ends what has not ended.

    window: how many of the call's completions are in the engine at a time. Past the first they wait for room instead
    of being refused. streamed: whether somebody reads the text as it comes. deadline: by when the first has to be
    ready, in loop time. ending: how it was made to end, if it was.
    """

    def __init__(self, stepper: EngineLoop, window: int, streamed: bool, deadline: float) -> None:
        self.ending: FinishReason = "cancelled"
        self._stepper = stepper
        self._deadline = deadline
        self._seats = asyncio.Semaphore(window)
        self._streamed = streamed
        self._outbox = EventQueue(bounded=streamed)
        self._pace_s = PACE_S if streamed else WHOLE_PACE_S
        self._boarding: asyncio.Task[None] | None = None

    def end(self, reason: FinishReason) -> None:
        """Begin no more, and end what has begun for this reason; `events` then comes to its end."""
        self.ending = reason
        self._outbox.seal()
        if self._boarding is not None:
            self._boarding.cancel()
        for request in self._outbox.live:
            self._stepper.abort(request, reason)

    async def events(self, requests: Requests) -> AsyncGenerator[list[Event], None]:
        """What the engine tells, as it comes but not too often: pieces, and one Finished for each that began.

        A request that fails alone has an end that says so. Raises Busy where not even the first is taken, Cancelled
        for a slow reader, Unavailable at the worker's end.
        """
        if self._outbox.is_sealed:
            return
        loop = asyncio.get_running_loop()
        self._boarding = asyncio.create_task(self._board(requests), name="boarding")
        not_before = 0.0
        try:
            while events := await self._outbox.take(not_before):
                not_before = loop.time() + self._pace_s
                for event in events:
                    if isinstance(event, Finished):
                        self._seats.release()
                yield events
        finally:
            self._boarding.cancel()
            for request in self._outbox.live:  # before anything is awaited: a second cancellation may come there
                self._stepper.leave(request)
            await asyncio.gather(self._boarding, return_exceptions=True)

    async def _board(self, requests: Requests) -> None:
        patient = False
        try:
            async with aclosing(requests):
                async for request in requests:
                    await self._seats.acquire()
                    if isinstance(request, Finished):
                        self._outbox.put(request)
                    else:
                        await self._begin(request, patient)
                        patient = True
        except Exception as error:
            self._outbox.fail(error)
        finally:
            self._outbox.seal()

    async def _begin(self, request: Request, patient: bool) -> None:
        # What comes after the first has no time of its own: at the deadline the call ends, with what there is.
        begin_by = math.inf if patient else self._stepper.begin_by(request, self._deadline, self._streamed)
        while True:
            ended = self._stepper.ended
            self._outbox.open(request.id)
            try:
                await self._stepper.add(request, self._outbox, begin_by)
                return
            except EngineFull as error:
                self._outbox.forget(request.id)
                if not patient:
                    raise self._stepper.refusal(error) from None
                await self._stepper.another_ended(ended)
            except ModelError as error:
                self._outbox.put(Finished(request.id, "error", Usage(0, 0, 0), error=error))
                return
