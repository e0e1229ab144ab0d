"""What the backlog of one caller costs another: of what waits, callers take turns."""

import asyncio
import json

import pytest
from fake_encoder import FakeEncoder
from generation_engines import new_engine
from generation_models import llama
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from workers import running_worker

from models.catalogue import ModelSpec
from models.loading.loader import LoadOptions, load_generator
from subjects import MLClient, names

PATIENT = {names.TIMEOUT_MS: "900000"}
"""On a slow machine too nothing is refused for its deadline."""


async def backlog(nc: Client, subject: str, times: int, **fields: object) -> Subscription:
    """So many requests, which the server has once this returns -> where their replies come."""
    inbox = nc.new_inbox()
    replies = await nc.subscribe(f"{inbox}.*")
    for number in range(times):
        await nc.publish(subject, json.dumps(fields).encode(), reply=f"{inbox}.{number}", headers=PATIENT)
    await nc.flush()
    return replies


@pytest.mark.parametrize("packed", [True, False])
async def test_of_a_backlog_of_texts_one_goes_and_then_the_other_callers(
    nats_url: str, attacker: Client, nc: Client, packed: bool
) -> None:
    encoder = FakeEncoder(packed=packed)
    async with running_worker(nats_url, encoder, batch={"budget_tokens": 1}):
        encoder.gate.clear()
        replies = await backlog(attacker, names.EMBED, 50, text="word")
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        other = await backlog(nc, names.EMBED, 1, text="two words")
        assert await MLClient(nc).discover()  # the worker has had it by now
        encoder.gate.set()
        await other.next_msg(20)
        for _ in range(50):
            await replies.next_msg(20)
    assert encoder.batches.index([2]) <= 3  # one ran and one was at the device before it came


@pytest.mark.parametrize(("requests", "n"), [(6, 1), (1, 6)])
async def test_a_backlog_of_long_texts_to_write_delays_no_short_one(
    nats_url: str, attacker: Client, nc: Client, requests: int, n: int
) -> None:
    """Its caller may have gone, which nobody notices: it named no subject where it listens."""
    spec = ModelSpec(id="tiny_coder", kind="generation", folder=llama())
    engine = new_engine(load_generator(spec, LoadOptions(device="cpu", dtype="fp32")), max_running=2)
    async with running_worker(nats_url, FakeEncoder(), engine):
        asked = {"prompt": "def fib(n):", "temperature": 0}
        replies = await backlog(attacker, names.GENERATE, requests, **asked, max_tokens=150, n=n)
        other = await backlog(nc, names.GENERATE, 1, **asked, max_tokens=3)
        short = json.loads((await other.next_msg(60)).data)
        assert short["usage"]["completion_tokens"] == 3
        assert replies.pending_msgs == 0
        for _ in range(requests):
            assert json.loads((await replies.next_msg(60)).data)["usage"]["completion_tokens"] == 150 * n
