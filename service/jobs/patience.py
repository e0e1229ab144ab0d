"""Getting through to a server that may be away for a while, and to tasks that may not hear. Knows no job."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog
from nats.errors import (
    ConnectionClosedError,
    ConnectionReconnectingError,
    NoRespondersError,
    OutboundBufferLimitError,
    StaleConnectionError,
)
from nats.js.errors import NoStreamResponseError, ServiceUnavailableError

log = structlog.get_logger(__name__)

ResultT = TypeVar("ResultT")

TROUBLE = (
    TimeoutError,
    OSError,
    ConnectionClosedError,
    ConnectionReconnectingError,
    NoRespondersError,
    NoStreamResponseError,
    OutboundBufferLimitError,
    ServiceUnavailableError,
    StaleConnectionError,
)
"""What a server that is away looks like, or one that has just come back."""
RETRY_S = 1.0
CANCEL_AGAIN_S = 15.0


async def insist(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """The result of a call, made again for as long as the server is away."""
    while True:
        try:
            return await call()
        except TROUBLE as error:
            log.warning("jobs.server_away", error=repr(error))
            await asyncio.sleep(RETRY_S)


@asynccontextmanager
async def going_on(work: Callable[[asyncio.Event], Coroutine[Any, Any, None]], name: str) -> AsyncIterator[None]:
    """Inside, the work goes on in a task. Its event is set at the end, where nats-py swallows the cancellation."""
    closing = asyncio.Event()
    task = asyncio.create_task(work(closing), name=name)
    try:
        yield
    finally:
        closing.set()
        await stopped(task)


async def stopped(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel them and wait for their end; once more after a while, since nats-py swallows it while it flushes."""
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
