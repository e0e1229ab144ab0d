"""More than a worker can do: what would be late is refused at once, unread, and management goes on."""

import asyncio
import json

import msgpack
import nats
import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from fake_loader import FakeLoader
from nats.aio.client import Client
from nats.aio.msg import Msg
from workers import running_worker

from models.generation.types import EngineLimits
from subjects import names


@pytest.fixture
async def nc(nats_url):
    async with await nats.connect(nats_url) as client:
        yield client


async def ask(nc: Client, subject: str, body: bytes, deadline_ms: int = 20_000) -> tuple[str | None, dict]:
    """The code of the answer, and its body. Waits much longer than the deadline: what counts is who answers."""
    headers = {names.TIMEOUT_MS: str(deadline_ms), names.ACCEPT: names.JSON}
    message: Msg = await nc.request(subject, body, timeout=60, headers=headers)
    return (message.headers or {}).get(names.ERROR_CODE), json.loads(message.data)


async def slow(nc: Client, encoder: FakeEncoder) -> asyncio.Task:
    """Let the worker learn that a token takes 50 ms, then keep it busy until the gate opens -> the 64 tokens of it."""
    encoder.gate.clear()
    first = asyncio.create_task(ask(nc, names.EMBED, b"slow"))
    assert await asyncio.to_thread(encoder.entered.wait, 10)
    await asyncio.sleep(0.05)
    encoder.gate.set()
    assert (await first)[0] is None
    encoder.gate.clear()
    encoder.entered.clear()
    busy = asyncio.create_task(ask(nc, names.EMBED, b"word " * 64))
    assert await asyncio.to_thread(encoder.entered.wait, 10)
    return busy


async def test_a_text_that_would_be_late_is_refused_unread(nats_url, nc):
    encoder = FakeEncoder()
    async with running_worker(nats_url, encoder, batch={"budget_tokens": 1}):
        busy = await slow(nc, encoder)
        for body in (b"one more", b'{"text": unreadable'):
            code, reply = await ask(nc, names.EMBED, body, deadline_ms=1000)
            assert (code, reply["error"]["retryable"]) == ("429", True)
            assert 1000 <= reply["error"]["retry_after_ms"] <= 60_000
        patient = asyncio.create_task(ask(nc, names.EMBED, b"there is time"))
        bulk = asyncio.create_task(ask(nc, names.EMBED, b'{"text": "another line", "priority": "bulk"}', 1000))
        encoder.gate.set()
        assert [code for code, _ in await asyncio.gather(busy, patient, bulk)] == [None, None, None]


@pytest.mark.parametrize("dumps", [lambda fields: json.dumps(fields).encode(), msgpack.packb], ids=["json", "msgpack"])
async def test_one_models_queue_refuses_nothing_to_another(nats_url, nc, dumps):
    encoder, loader = FakeEncoder(), FakeLoader()
    async with running_worker(nats_url, encoder, loader=loader, batch={"budget_tokens": 1}):
        busy = await slow(nc, encoder)
        code, _ = await ask(nc, names.EMBED, dumps({"text": "the same", "model": "minilm"}), 1000)
        assert code == "429"
        other = asyncio.create_task(ask(nc, names.EMBED, dumps({"text": "minilm", "model": "qodo"}), 1000))
        assert await asyncio.to_thread(loader.entered.wait, 10)  # the first that asks for it
        encoder.gate.set()
        assert [code for code, _ in await asyncio.gather(busy, other)] == [None, None]


async def test_management_has_places_of_its_own(nats_url, nc):
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with running_worker(nats_url, encoder, limits={"requests": 2}):
        full = [asyncio.create_task(ask(nc, names.EMBED, b"text")) for _ in range(2)]
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        for subject in (names.EMBED, names.EMBED_BATCH, names.GENERATE):
            assert (await ask(nc, subject, b"{}"))[0] == "429"
        assert (await ask(nc, names.MODELS_LIST, b""))[0] is None
        assert (await ask(nc, names.MODELS_INFO, b"minilm"))[0] is None
        encoder.gate.set()
        assert [code for code, _ in await asyncio.gather(*full)] == [None, None]


async def test_a_prompt_that_would_be_late_is_refused(nats_url, nc):
    engine = FakeEngine(limits=EngineLimits(max_running=1, waiting=50))
    engine.slow(0.02)

    def prompt(tokens: int) -> bytes:
        return json.dumps({"prompt": "a", "max_tokens": tokens}).encode()

    async with running_worker(nats_url, engine):
        assert (await ask(nc, names.GENERATE, prompt(10)))[0] is None
        engine.entered.clear()
        busy = asyncio.create_task(ask(nc, names.GENERATE, prompt(400), 60_000))
        assert await asyncio.to_thread(engine.entered.wait, 10)
        code, reply = await ask(nc, names.GENERATE, prompt(10), deadline_ms=1000)
        assert (code, reply["error"]["retryable"]) == ("429", True)
        engine.release()
        assert (await busy)[0] is None
