"""A worker for `ml.generate` that answers as a test tells it to: good frames, bad ones, errors, nothing."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgpack
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from service.bus.connection import settled
from subjects import codec, names, stream
from subjects.errors import MLError

END = {"finish_reason": "stop", "seed": 7}
SERVED = {"model": "tiny", "version": "v-fp32", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
DONE = {**SERVED, **END}


@dataclass
class Worker:
    """Answers each request on `ml.generate` and `ml.generate.batch` by the next of its scripts, again by the last."""

    nc: Client
    scripts: list["Script"] = field(default_factory=list)
    requests: list[Msg] = field(default_factory=list)
    cancelled: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    async def on_request(self, msg: Msg) -> None:
        script = self.scripts[min(len(self.requests), len(self.scripts) - 1)]
        self.requests.append(msg)
        await script(self, msg)

    async def on_cancel(self, msg: Msg) -> None:
        self.cancelled.put_nowait(msg.subject.removeprefix("ml.cancel."))

    async def next_cancel(self) -> str:
        """The id of the next request that is cancelled."""
        return await asyncio.wait_for(self.cancelled.get(), 10)

    def fields(self, number: int = 0) -> Any:
        return msgpack.unpackb(self.requests[number].data, strict_map_key=False)

    def id(self, number: int = 0) -> str:
        return self.requests[number].headers[names.REQUEST_ID]


def echoed(msg: Msg) -> dict[str, str]:
    """The header that ties an answer to its request."""
    return {names.REQUEST_ID: msg.headers[names.REQUEST_ID]}


Script: TypeAlias = Callable[[Worker, Msg], Awaitable[None]]


@asynccontextmanager
async def scripted_worker(url: str) -> AsyncIterator[Worker]:
    """A worker on `url` whose scripts are still to be given."""
    async with await nats.connect(url) as nc:
        worker = Worker(nc)
        for subject in (names.GENERATE, names.GENERATE_BATCH):
            await nc.subscribe(subject, "ml", cb=worker.on_request)
        await nc.subscribe("ml.cancel.*", cb=worker.on_cancel)
        await settled(nc)
        yield worker


def frames(*events: tuple[str, int, dict[str, Any]], sentinel: bool = True) -> Script:
    """A script that sends these, (event, seq, fields) each."""

    async def send(worker: Worker, msg: Msg) -> None:
        for event, seq, fields in events:
            body = codec.dumps({**fields, "seq": seq}, names.MSGPACK)
            await worker.nc.publish(msg.reply, body, headers=echoed(msg) | stream.frame_headers(event, seq))
        if sentinel:
            await worker.nc.publish(msg.reply, stream.SENTINEL)

    return send


def tokens(*texts: str) -> list[tuple[str, int, dict[str, Any]]]:
    return [(stream.TOKEN, seq, {"text": text}) for seq, text in enumerate(texts)]


def reply(fields: dict[str, Any]) -> Script:
    async def send(worker: Worker, msg: Msg) -> None:
        await worker.nc.publish(msg.reply, codec.dumps(fields, names.MSGPACK), headers=echoed(msg))

    return send


def refusal(error: MLError) -> Script:
    async def send(worker: Worker, msg: Msg) -> None:
        body = codec.dumps_error(error, msg.headers[names.REQUEST_ID], names.MSGPACK)
        await worker.nc.publish(msg.reply, body, headers=echoed(msg) | error.headers())

    return send


def failing(error: MLError, *before: tuple[str, int, dict[str, Any]]) -> Script:
    """Frames, then an error frame and the sentinel."""

    async def send(worker: Worker, msg: Msg) -> None:
        await frames(*before, sentinel=False)(worker, msg)
        headers = echoed(msg) | error.headers() | stream.frame_headers(stream.ERROR, len(before))
        await worker.nc.publish(msg.reply, codec.dumps_error(error, "", names.MSGPACK), headers=headers)
        await worker.nc.publish(msg.reply, stream.SENTINEL)

    return send


async def silent(worker: Worker, msg: Msg) -> None:
    """Nothing ever comes."""
