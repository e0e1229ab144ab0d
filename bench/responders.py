"""What the worker's overhead is measured against: `python -m bench.responders URL SUBJECT`.

On `bench.floor` every request is answered with the same prepared bytes: no service can cost less on this client and
server. On `bench.micro` answers the peer: nats-py's own service framework, which decodes the request and encodes a
vector as the worker does.
"""

import asyncio
import sys

import msgpack
import nats
import numpy as np
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro import add_service
from nats.micro.request import Request

DIMENSIONS = 384
FLOOR, MICRO = "bench.floor", "bench.micro"


def reply_body(text: str) -> bytes:
    """A MessagePack reply of the worker's shape for a model that costs nothing."""
    vector = np.zeros(DIMENSIONS, dtype="<f4")
    usage = {"tokens": len(text.split())}
    packed: bytes = msgpack.packb({"embedding": vector.tobytes(), "model": "free", "version": "0", "usage": usage})
    return packed


async def serve_floor(nc: Client) -> None:
    """Answer with bytes prepared beforehand."""
    prepared = reply_body("")

    async def answer(msg: Msg) -> None:
        await nc.publish(msg.reply, prepared)

    await nc.subscribe(FLOOR, cb=answer)


async def serve_micro(nc: Client) -> None:
    """Answer through nats.micro, decoding and encoding MessagePack."""

    async def answer(request: Request) -> None:
        await request.respond(reply_body(msgpack.unpackb(request.data)["text"]))

    service = await add_service(nc, name="micro", version="1.0.0", description="peer")
    await service.add_endpoint(name="embed", subject=MICRO, handler=answer)


async def main() -> None:
    """Serve until terminated."""
    url, subject = sys.argv[1:]
    nc = await nats.connect(url)
    await {FLOOR: serve_floor, MICRO: serve_micro}[subject](nc)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
