"""The completions of one call: submitted to the engine one after the other, and ended when the call leaves."""

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeAlias

from models.errors import ModelError
from models.generation.errors import EngineFull
from models.generation.types import Event, Finished, FinishReason, Request, Usage

from .engine_loop import EngineLoop
from .event_queue import EventQueue

INTERVAL_S = 0.02
"""How long later pieces of a stream may wait, to be sent together; the first is sent at once."""
WHOLE_INTERVAL_S = 0.25
"""And if they make one reply, which nobody sees before its end."""

Requests: TypeAlias = AsyncGenerator[Request | Finished, None]
"""What is to be completed, in order; Finished for a prompt that could not be made a request."""


class CompletionStream:
    """`events` completes the requests that it is given; leaving it early ends those that have not ended.

    window: how many of the call's completions are in the engine at a time; all but the first wait for a slot instead of
    being refused. streamed: whether the text is read as it comes. deadline: by when the first has to be ready, in loop
    time. ending: the reason with which `end` was called, if it was.
    """

    def __init__(self, engine: EngineLoop, window: int, streamed: bool, deadline: float) -> None:
        self.ending: FinishReason = "cancelled"
        self._engine = engine
        self._deadline = deadline
        self._slots = asyncio.Semaphore(window)
        self._streamed = streamed
        self._queue = EventQueue(bounded=streamed)
        self._interval_s = INTERVAL_S if streamed else WHOLE_INTERVAL_S
        self._submitting: asyncio.Task[None] | None = None

    def end(self, reason: FinishReason) -> None:
        """Submit no more, and end what has begun for this reason; `events` then comes to its end."""
        self.ending = reason
        self._queue.seal()
        if self._submitting is not None:
            self._submitting.cancel()
        for request in self._queue.live:
            self._engine.abort(request, reason)

    async def events(self, requests: Requests) -> AsyncGenerator[list[Event], None]:
        """The engine's events, in batches: pieces, and one Finished for each completion that began.

        A request that fails alone has a Finished with its error. Raises Busy if even the first is refused, Cancelled
        for a slow reader, Unavailable at the worker's end.
        """
        if self._queue.is_sealed:
            return
        loop = asyncio.get_running_loop()
        self._submitting = asyncio.create_task(self._submit_all(requests), name="submitting")
        not_before = 0.0
        try:
            while events := await self._queue.take(not_before):
                not_before = loop.time() + self._interval_s
                for event in events:
                    if isinstance(event, Finished):
                        self._slots.release()
                yield events
        finally:
            self._submitting.cancel()
            for request in self._queue.live:  # before anything is awaited: a second cancellation may come there
                self._engine.abandon(request)
            await asyncio.gather(self._submitting, return_exceptions=True)

    async def _submit_all(self, requests: Requests) -> None:
        first = True
        try:
            async with aclosing(requests):
                async for request in requests:
                    await self._slots.acquire()
                    if isinstance(request, Finished):
                        self._queue.put(request)
                    else:
                        await self._submit(request, first)
                        first = False
        except Exception as error:
            self._queue.fail(error)
        finally:
            self._queue.seal()

    async def _submit(self, request: Request, first: bool) -> None:
        # Later completions have no time of their own: at the deadline the call ends, with what there is.
        begin_by = self._engine.begin_by(request, self._deadline, self._streamed) if first else math.inf
        while True:
            ended = self._engine.ended
            self._queue.open(request.id)
            try:
                await self._engine.add(request, self._queue, begin_by)
                return
            except EngineFull as error:
                self._queue.forget(request.id)
                if first:
                    raise self._engine.refusal(error) from None
                await self._engine.wait_for_end(ended)
            except ModelError as error:
                self._queue.put(Finished(request.id, "error", Usage(0, 0, 0), error=error))
                return
