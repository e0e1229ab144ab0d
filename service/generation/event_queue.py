"""The queue between an engine and one call: events of its completions that the call has not taken yet."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress

from models.generation.types import Event, Finished, Piece, Scored

LIMIT_CHARS = 65_536
"""How much text of one completion of a stream may wait: a call whose reader is further behind is cancelled."""
LOGPROB_CHARS = 64
"""What a token's log-probability counts for, in characters."""


class EventQueue:
    """Events of any number of completions; `take` takes all that wait.

    bounded: whether a completion's text may fill the queue; not if nobody reads it before its end. live: ids of the
    completions that have been opened and have not ended. is_sealed: whether no more will be opened.
    """

    def __init__(self, bounded: bool = True) -> None:
        self._bounded = bounded
        self.live: set[str] = set()
        self._waiting: dict[str, list[Event]] = {}
        self._size: dict[str, int] = {}
        self._error: Exception | None = None
        self.is_sealed = False
        self._any = asyncio.Event()
        self._hurry = asyncio.Event()

    def open(self, request: str) -> None:
        """Expect events of this completion, the last of them its Finished."""
        self.live.add(request)

    def forget(self, request: str) -> None:
        """Expect none of this completion after all."""
        self.live.discard(request)

    def seal(self) -> None:
        """No more completions will be opened."""
        self.is_sealed = True
        self._check_over()

    def put(self, event: Event) -> bool:
        """Add an event -> False if its completion has filled the queue and should be ended."""
        if self._error is None:
            self._waiting.setdefault(event.request, []).append(event)
            self._any.set()
        if not isinstance(event, Piece):
            if isinstance(event, Finished):
                self.live.discard(event.request)
            self._hurry.set()
            return True
        waited = self._size.get(event.request, 0)
        size = self._size[event.request] = waited + _size(event)
        if size > LIMIT_CHARS // 2:
            self._hurry.set()
        return waited <= LIMIT_CHARS or not self._bounded or self._error is not None

    def fail(self, error: Exception) -> None:
        """Have `take` raise this error, at once and instead of what waits; the first error counts."""
        self._error = self._error or error
        self._waiting.clear()
        self._any.set()
        self._hurry.set()

    async def take(self, not_before: float = 0.0) -> list[Event]:
        """All that waits, the pieces of each completion merged; empty once all have ended and been taken.

        Waits until there is something, and then until `not_before` (loop time) too, unless a completion ends or much
        text waits. Raises the error given to `fail`.
        """
        await self._any.wait()
        if not self._hurry.is_set() and asyncio.get_running_loop().time() < not_before:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(not_before):
                    await self._hurry.wait()
        if self._error is not None:
            raise self._error
        waiting, self._waiting = self._waiting, {}
        self._size.clear()
        self._any.clear()
        self._hurry.clear()
        self._check_over()
        return [event for events in waiting.values() for event in _merged(events)]

    def _check_over(self) -> None:
        if self.is_sealed and not self.live:
            self._any.set()
            self._hurry.set()


def _size(piece: Piece) -> int:
    return len(piece.text) + LOGPROB_CHARS * sum(1 + len(logprob.top) for logprob in piece.logprobs)


def _merged(events: list[Event]) -> Iterable[Event]:
    """The same events, with all pieces in one."""
    yield from (event for event in events if isinstance(event, Scored))
    pieces = [event for event in events if isinstance(event, Piece)]
    if len(pieces) > 1:
        yield Piece(
            request=pieces[0].request,
            text="".join(piece.text for piece in pieces),
            tokens=sum(piece.tokens for piece in pieces),
            logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
        )
    else:
        yield from pieces
    yield from (event for event in events if isinstance(event, Finished))
