"""Frames of one streamed reply: numbered, and probed for a listener. Knows no handler."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeAlias

from pydantic import BaseModel

from subjects.generate import PingFrame
from subjects.stream import PING

from .call import Call

PROBE_EVERY = 4
"""Each so many frames carry a reply subject; without a listener the server answers 503 on it at once.

Of a stream that lasts each frame does: they come seldom."""

Frames: TypeAlias = AsyncGenerator[tuple[str, BaseModel], None]


async def send_stream(call: Call, frames: Frames, probe: str) -> None:
    """Send (event, message) pairs as frames; or the one reply, where the handler chose that.

    The handler yields the `done` frame itself; an exception it raises becomes the `error` frame.
    probe: the worker's own subject for this call.
    """
    async with aclosing(frames if call.asked.ping_s is None else _with_pings(call, frames, call.asked.ping_s)) as sent:
        async for event, message in sent:
            await call.send(event, message, probe if call.lasting or call.frames % PROBE_EVERY == 0 else "")


async def _with_pings(call: Call, frames: Frames, ping_s: float) -> Frames:
    """The same, with a ping whenever there has been nothing for so long."""
    async with aclosing(frames):
        while True:
            coming = asyncio.ensure_future(anext(frames, None))
            try:
                while not (await asyncio.wait({coming}, timeout=ping_s))[0]:
                    if call.framed:
                        yield PING, PingFrame()
                frame = coming.result()
            finally:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
            if frame is None:
                return
            yield frame
