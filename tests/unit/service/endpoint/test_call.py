"""A call's headers and its single terminal answer, on a connection that only records."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from nats.aio.msg import Msg

from service.endpoint.call import Call
from service.endpoint.frames import send_stream
from service.endpoint.headers import read_headers
from subjects import names
from subjects.embed import EmbedChunk, EmbedDone, Usage
from subjects.errors import Cancelled, DeadlinePassed, Malformed, TooLarge


@dataclass
class Recorder:
    """Takes what is published; swallows a cancellation meanwhile, as nats-py does while it flushes."""

    max_payload: int = 1 << 20
    is_connected: bool = True
    pending_data_size: int = 0
    sent: list[tuple[bytes, Any]] = field(default_factory=list)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)

    def backlog_bytes(self, subject: str, heard_at: float) -> int:
        return 0

    async def publish_kept(
        self, subject: str, body: bytes, *, reply: str, headers: Any, until: float, heard_at: float
    ) -> None:
        self.sent.append((body, headers))
        with suppress(asyncio.CancelledError):
            await self.stalled.wait()

    def events(self) -> list[str]:
        return [headers[names.EVENT] if headers else "sentinel" for _, headers in self.sent]


def streaming_call(nc: Recorder, timeout_s: float = 30) -> Call:
    headers = {names.STREAM: "true", names.TIMEOUT_MS: str(int(timeout_s * 1000))}
    return Call(nc, "embed-batch", Msg(None, reply="inbox", data=b"{}", headers=headers), 1, 30)


async def frames(count: int):
    for _ in range(count):
        yield "chunk", EmbedChunk(version="v", dimensions=1, index=0, embeddings=[])
    yield "done", EmbedDone(model="m", version="v", usage=Usage(tokens=0), count=0, dimensions=1)


async def test_a_cancellation_that_a_flush_swallows_still_ends_the_stream():
    nc = Recorder()
    call = streaming_call(nc)
    call.task = asyncio.create_task(send_stream(call, frames(10)))
    call.running = True
    await asyncio.sleep(0)
    call.end(Cancelled("stop"))
    nc.stalled.set()
    with pytest.raises(Cancelled):
        await call.task
    await call.fail(Cancelled("stop"))
    assert nc.events() == ["chunk", "error"]


async def test_a_deadline_that_passes_in_a_flush_ends_the_stream():
    nc = Recorder()
    nc.stalled.set()
    call = streaming_call(nc)
    call.deadline = 0
    with pytest.raises(DeadlinePassed):
        await send_stream(call, frames(10))


async def test_after_the_last_frame_nothing_but_the_sentinel_follows():
    nc = Recorder()
    nc.stalled.set()
    call = streaming_call(nc)
    await send_stream(call, frames(2))
    await call.fail(Cancelled("too late"))
    await call.close()
    assert nc.events() == ["chunk", "chunk", "done", "sentinel"]


def test_a_header_flood_keeps_the_form_of_the_reply():
    headers = read_headers({names.STREAM: "true", **{f"X-{n}": "y" * 100 for n in range(300)}}, b"x")
    assert isinstance(headers.fault, TooLarge)
    assert headers.stream


@pytest.mark.parametrize("value", ["10000000000000000000garbage", "1e3", "", " ", "0x10", "1_000", "9" * 19])
def test_a_timeout_that_is_no_number_is_refused(value):
    assert isinstance(read_headers({names.TIMEOUT_MS: value}, b"x").fault, Malformed)


@pytest.mark.parametrize(("value", "seconds"), [("000000000000005000", 5), ("999999999999", names.MAX_TIMEOUT_S)])
def test_a_timeout_is_read_and_capped(value, seconds):
    assert read_headers({names.TIMEOUT_MS: value}, b"x").timeout_s == seconds
