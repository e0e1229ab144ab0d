"""Closed-loop load: callers that send their next request as soon as the last one is answered.

Knows requests and replies as bytes, over NATS and over HTTP; knows nothing of what they mean.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg

Sink = Callable[[int, bytes], None]


class Caller(Protocol):
    """Sends one request and returns the body of its answer; raises Refused on any other answer."""

    def __call__(self, body: bytes) -> Awaitable[bytes]: ...


class Refused(Exception):
    """The other side answered with an error."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of closed-loop load took."""

    seconds: float
    latencies_ms: np.ndarray

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies_ms) / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """The latency that `percent` of the answers stayed below."""
        return float(np.percentile(self.latencies_ms, percent))


def drop(_index: int, _reply: bytes) -> None:
    """Keep no reply."""


async def closed_loop(
    callers: Sequence[Caller], requests: Sequence[bytes], sink: Sink = drop, timeout_s: float = 600
) -> Load:
    """Share `requests` out among `callers`; every reply goes to `sink` with its request's index.

    Raises Refused (in a group) on an error answer, TimeoutError when the whole run takes too long.
    """
    latencies_ms = np.zeros(len(requests))
    todo = iter(enumerate(requests))

    async def keep_calling(call: Caller) -> None:
        for index, body in todo:
            sent = time.perf_counter()
            reply = await call(body)
            latencies_ms[index] = (time.perf_counter() - sent) * 1000
            sink(index, reply)

    started = time.perf_counter()
    async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
        for call in callers:
            group.create_task(keep_calling(call))
    return Load(time.perf_counter() - started, latencies_ms)


class NatsCaller:
    """An inbox and at most one request outstanding: the least that nats-py can do for a reply."""

    def __init__(self, nc: Client, subject: str) -> None:
        self._nc, self._subject, self._inbox = nc, subject, nc.new_inbox()
        self._answer: asyncio.Future[bytes] = asyncio.Future()

    @classmethod
    async def open(cls, nc: Client, subject: str) -> Self:
        """A caller of `subject` whose inbox the server knows of."""
        caller = cls(nc, subject)
        await nc.subscribe(caller._inbox, cb=caller._take)
        return caller

    async def __call__(self, body: bytes) -> bytes:
        self._answer = asyncio.Future()
        await self._nc.publish(self._subject, body, reply=self._inbox)
        return await self._answer

    async def _take(self, msg: Msg) -> None:
        if self._answer.done():  # who asked has given up
            return
        if msg.headers and ("Nats-Service-Error" in msg.headers or "Status" in msg.headers):
            self._answer.set_exception(Refused(f"{msg.headers} {msg.data[:300]!r}"))
        else:
            self._answer.set_result(msg.data)


class HttpCaller:
    """One kept-alive HTTP/1.1 connection and nothing between it and the socket, so that no client slows a peer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        self._reader, self._writer = reader, writer
        self._head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()

    @classmethod
    async def open(cls, port: int, path: str) -> Self:
        """A connection to the loopback `port` that posts to `path`."""
        return cls(*await asyncio.open_connection("127.0.0.1", port), path)

    async def __call__(self, body: bytes) -> bytes:
        self._writer.write(b"%sContent-Length: %d\r\n\r\n%s" % (self._head, len(body), body))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0]
        reply = await self._reader.readexactly(int(length))
        if not head.startswith(b"HTTP/1.1 200"):
            raise Refused(f"{head!r} {reply[:300]!r}")
        return reply

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        await self._writer.wait_closed()
