"""Reads a vector from MessagePack with nats-py, msgpack and numpy; NATS_URL says where."""

import asyncio
import os

import msgpack
import nats
import numpy as np

TIMEOUT_S = 30.0
TIMEOUT = {"Ml-Timeout-Ms": f"{TIMEOUT_S * 1000:.0f}"}


async def embed(nc, **options):
    request = msgpack.packb({"text": "def hello(): pass", **options})
    message = await nc.request("ml.embed", request, timeout=TIMEOUT_S, headers=TIMEOUT)
    if "Nats-Service-Error" in message.headers:
        raise RuntimeError(message.headers["Nats-Service-Error"])
    return msgpack.unpackb(message.data)


def show(encoding, vector):
    print(f"{encoding}: {len(vector)} values, {vector[0]:.4f} {vector[1]:.4f} … {vector[-1]:.4f}")


async def main():
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))

    reply = await embed(nc)
    vector = np.frombuffer(reply["embedding"], "<f4")
    show("float32", vector)

    show("array", (await embed(nc, encoding_format="array"))["embedding"])
    await nc.close()


asyncio.run(main())
