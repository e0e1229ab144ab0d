"""Retrying while the NATS server is down."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

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
"""Errors of a server that is down, or that has just come back."""
OVERTAKEN = (10071, 10164)
"""JetStream's codes for a stream or subject whose last message is not the expected one."""
FULL = (10077, 10023)
"""JetStream's codes for a full stream and a full server."""
RETRY_S = 1.0


async def retry_while_down(call: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """The result of a call, repeated every second while the server is down."""
    while True:
        try:
            return await call()
        except TROUBLE as error:
            log.warning("jobs.server_away", error=repr(error))
            await asyncio.sleep(RETRY_S)
