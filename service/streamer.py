"""Frames of one streamed reply: numbered, probed for a listener, ended by the sentinel. Knows no handler."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from pydantic import BaseModel

from .call import Call

PROBE_EVERY = 4
"""Each so many frames carry a reply subject; without a listener the server answers 503 on it at once."""


async def send_stream(call: Call, frames: AsyncGenerator[tuple[str, BaseModel], None], probe: str) -> None:
    """Send (event, message) pairs as frames, then the sentinel; or the one reply, where the handler chose that.

    The handler yields the `done` frame itself; an exception it raises becomes the `error` frame.
    probe: the worker's own subject for this call.
    """
    async with aclosing(frames):
        async for event, message in frames:
            await call.send(event, message, probe if call.frames % PROBE_EVERY == 0 else "")
    if call.framed:
        await call.end_stream()
