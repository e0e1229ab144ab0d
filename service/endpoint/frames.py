"""A streamed reply: frames in order, pings between them, and questions whether anybody listens."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeAlias

from pydantic import BaseModel

from subjects.message import PingFrame
from subjects.stream import PING

from .call import Call

ASK_EVERY = 4
"""One frame in this many carries a reply subject, on which the server answers 503 at once if nobody listens.

Of a lasting stream each frame does: they come seldom."""

Frames: TypeAlias = AsyncGenerator[tuple[str, BaseModel], None]


async def send_stream(call: Call, frames: Frames) -> None:
    """Send (event, message) pairs as frames, or the one reply if the handler chose that.

    The handler yields the `done` frame itself; an exception that it raises becomes the `error` frame.
    """
    async with aclosing(
        frames if call.headers.ping_s is None else _with_pings(call, frames, call.headers.ping_s)
    ) as sent:
        async for event, message in sent:
            await call.send(event, message, asks=call.lasting or call.frames % ASK_EVERY == 0)


async def _with_pings(call: Call, frames: Frames, ping_s: float) -> Frames:
    """The same frames, with a ping whenever there has been none for `ping_s`."""
    async with aclosing(frames):
        while True:
            next_frame = asyncio.ensure_future(anext(frames, None))
            try:
                while not (await asyncio.wait({next_frame}, timeout=ping_s))[0]:
                    if call.framed:
                        yield PING, PingFrame()
                frame = next_frame.result()
            finally:
                next_frame.cancel()
                await asyncio.gather(next_frame, return_exceptions=True)
            if frame is None:
                return
            yield frame
