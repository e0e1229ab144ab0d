"""Asks a worker of mlbus with nats-py and nothing of ours; NATS_URL says where.

`subjects.MLClient` does all of this and more; docs/guide/clients.md shows it.
"""

import asyncio
import json
import os
import uuid
from contextlib import suppress

import nats

TIMEOUT_S = 30.0  # nats-py's own is half a second
TIMEOUT = {"Ml-Timeout-Ms": f"{TIMEOUT_S * 1000:.0f}"}  # the worker drops what nobody waits for any more


class MLError(Exception):
    """An error of the worker, or a stream that was cut off."""


def checked(message):
    """The body of a reply or frame; an error is one with two more headers."""
    headers = message.headers or {}
    if code := headers.get("Nats-Service-Error-Code"):
        raise MLError(f"{code} {headers['Nats-Service-Error']}")
    return json.loads(message.data)


async def ask(nc, subject, **body):
    return checked(await nc.request(subject, json.dumps(body).encode(), timeout=TIMEOUT_S, headers=TIMEOUT))


async def generate(nc, cancel_after=None, **body):
    """Print the pieces of a text as they come, and how it ended."""
    frames = await nc.subscribe(nc.new_inbox())
    headers = {"Ml-Stream": "true", "Ml-Request-Id": uuid.uuid4().hex, **TIMEOUT}
    await nc.publish("ml.generate", json.dumps(body).encode(), reply=frames.subject, headers=headers)
    event, pieces = None, 0
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT_S):
            while (frame := await frames.next_msg(timeout=None)).data:  # an empty message is the end
                if (frame.headers or {}).get("Ml-Request-Id") != headers["Ml-Request-Id"]:
                    continue  # somebody else's
                reply, event = checked(frame), frame.headers["Ml-Event"]
                if event == "token":
                    print(reply["text"], end="", flush=True)
                    pieces += 1
                    if pieces == cancel_after:
                        # Leaving is not enough: where a library has one inbox for all, the worker does not hear of it.
                        await nc.publish(f"ml.cancel.{headers['Ml-Request-Id']}")
    await frames.unsubscribe()
    if event != "done":
        raise MLError("cut off: the stream ended without `done` and without an error")
    print(f"\nfinish: {reply['finish_reason']}")


async def main():
    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"))

    reply = await ask(nc, "ml.embed", text="def hello(): pass")
    first = " ".join(f"{value:.4f}" for value in reply["embedding"][:3])
    print(f"embed: {reply['model']}, {reply['dimensions']} dimensions, {first}")

    candidates = ["a + b", "open(path).read()", "requests.get(url)"]
    ranking = await ask(nc, "ml.similarity", query="read a file", candidates=candidates)
    for ranked in ranking["results"]:
        print(f"rank: {ranked['index']} {ranked['score']:.2f}")

    print("stream: ", end="")
    await generate(nc, prompt="def fib(n):", max_tokens=48, temperature=0)

    try:
        await ask(nc, "ml.embed", text="def hello(): pass", lang="python")
    except MLError as error:
        print("error:", error)

    print("cancel: ", end="")
    await generate(nc, cancel_after=3, prompt="def fib(n):", max_tokens=1000, min_tokens=1000)

    pongs = await nc.subscribe(nc.new_inbox())
    await nc.publish("$SRV.PING.ml", reply=pongs.subject)
    workers = []
    with suppress(nats.errors.TimeoutError):  # nobody knows how many there are: listen until it is quiet
        while True:
            workers.append(json.loads((await pongs.next_msg(timeout=0.5)).data)["metadata"]["models"])
    print("workers:", len(workers), *workers)
    await nc.close()


asyncio.run(main())
