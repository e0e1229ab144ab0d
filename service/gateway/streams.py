"""Answers that are sent piece by piece, and the end of the work when their reader leaves or reads too slowly."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from subjects.errors import Cancelled, MLError, Unavailable

EVENT_STREAM = "text/event-stream"
LEFT = "the caller has left"


@asynccontextmanager
async def leaving_cancels(receive: Receive) -> AsyncIterator[None]:
    """Raises Cancelled inside the context once the caller closes the connection. The body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left or task.uncancel():  # cancelled by others, or by them as well
            raise
        raise Cancelled(LEFT) from None
    finally:
        watching.cancel()


class EventStream(Response):
    """Server-sent events. Closes the iterator, and with it the work, if the caller leaves or does not read.

    events: each a whole event. on_error: the last event after an error. write_timeout_s: how long the caller may leave
    what was sent unread.
    """

    media_type = EVENT_STREAM

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_error: Callable[[MLError], bytes],
        write_timeout_s: float,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._on_error = on_error
        self._write_timeout_s = write_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            last = b""
            try:
                async with leaving_cancels(receive), aclosing(self._events):
                    async for event in self._events:
                        await write(event)
            except MLError as error:
                last = self._on_error(error)
            except asyncio.CancelledError:  # at the end of the grace time, while the caller waits
                last = self._on_error(Unavailable("this gateway is shutting down"))
            await write(last, more=False)
        except TimeoutError:
            scope["abort"]()


async def with_first(events: AsyncGenerator[bytes, None], receive: Receive) -> AsyncGenerator[bytes, None]:
    """The same events, once the first is there: an error before it is then an answer with a status of its own."""
    try:
        async with leaving_cancels(receive):
            first = await anext(events)
    except BaseException:
        await events.aclose()
        raise

    async def all_of_them() -> AsyncGenerator[bytes, None]:
        async with aclosing(events):
            yield first
            async for event in events:
                yield event

    return all_of_them()


def event(data: bytes, name: str = "", number: int | None = None) -> bytes:
    """One server-sent event. data: a line of JSON."""
    head = (f"event: {name}\n" if name else "") + (f"id: {number}\n" if number is not None else "")
    return head.encode() + b"data: " + data + b"\n\n"
