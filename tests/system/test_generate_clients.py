"""Generated streams as clients with nothing of ours read them: nats-py alone, in each form, one or several watching."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgpack
import nats
import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats_server import PASSWORDS, NatsServer
from workers import running_worker

from service.bus.connection import settled

TOKENS = 60
TEXT = "".join(f" {number}" for number in range(TOKENS))
FIELDS = {"prompt": "def fib(n):", "max_tokens": TOKENS, "seed": 7}
STREAM = {"Ml-Stream": "true"}


@pytest.fixture
async def nc(nats_url: str) -> AsyncIterator[Client]:
    async with running_worker(nats_url, FakeEncoder(), FakeEngine()), await nats.connect(nats_url) as connection:
        yield connection


async def frames(messages: Subscription) -> list[Msg]:
    """All of a stream, up to the message that ends it: empty, and without headers."""
    found = []
    while (message := await messages.next_msg(timeout=20)).data:
        found.append(message)
    assert message.headers is None
    assert messages.pending_msgs == 0
    return found


async def streamed(nc: Client, body: bytes, **headers: str) -> list[Msg]:
    inbox = nc.new_inbox()
    messages = await nc.subscribe(inbox)
    sent = STREAM | {name.replace("_", "-"): value for name, value in headers.items()}
    await nc.publish("ml.generate", body, inbox, sent)
    return await frames(messages)


def check_headers(found: list[Msg], content_type: str) -> None:
    headers = [message.headers or {} for message in found]
    assert [header["Ml-Event"] for header in headers] == [*["token"] * (len(found) - 1), "done"]
    assert [header["Ml-Seq"] for header in headers] == [str(seq) for seq in range(len(found))]
    assert {header["Content-Type"] for header in headers} == {content_type}
    assert len({header["Ml-Request-Id"] for header in headers}) == 1


def check_facts(facts: Mapping[str, Any]) -> None:
    usage = {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": TOKENS}
    assert (facts["model"], facts["version"], facts["usage"]) == ("tiny_coder", "fake-fp32", usage)
    assert facts["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("content_type", "dumps", "loads"),
    [
        ("application/json", lambda fields: json.dumps(fields).encode(), json.loads),
        ("application/msgpack", msgpack.packb, msgpack.unpackb),
    ],
)
async def test_a_stream_of_maps(nc: Client, content_type: str, dumps: Any, loads: Any) -> None:
    found = await streamed(nc, dumps(FIELDS))
    check_headers(found, content_type)
    *tokens, done = [loads(message.data) for message in found]
    assert "".join(token["text"] for token in tokens) == TEXT
    assert [body["seq"] for body in (*tokens, done)] == list(range(len(found)))
    check_facts(done)
    assert done["seed"] == 7


async def test_a_stream_of_text(nc: Client) -> None:
    found = await streamed(nc, json.dumps(FIELDS).encode(), Accept="text/plain")
    check_headers(found, "text/plain")
    assert b"".join(message.data for message in found).decode() == TEXT + "\n"
    *tokens, done = [message.headers or {} for message in found]
    assert not any("Ml-Result" in headers for headers in tokens)
    check_facts(json.loads(done["Ml-Result"]))


async def test_an_error_ends_a_stream_in_each_form(nc: Client) -> None:
    for content_type, said in (("application/json", b'{"error":'), ("text/plain", b"error 422: ")):
        (only,) = await streamed(nc, b'{"prompt": "a", "top_p": 0}', Accept=content_type)
        headers = only.headers or {}
        assert (headers["Ml-Event"], headers["Nats-Service-Error-Code"]) == ("error", "422")
        assert only.data.startswith(said)
        assert b"top_p" in only.data


async def test_any_number_of_subscribers_watch_one_generation(nc: Client, nats_url: str) -> None:
    async with await nats.connect(nats_url) as other:
        watching = [await client.subscribe("ml.watch.screen") for client in (nc, nc, other)]
        await settled(other)
        await nc.publish("ml.generate", json.dumps(FIELDS).encode(), "ml.watch.screen", STREAM)
        first, *others = [[message.data for message in await frames(messages)] for messages in watching]
    assert others == [first, first]
    assert "".join(json.loads(body)["text"] for body in first[:-1]) == TEXT


async def test_a_stream_goes_on_while_one_of_its_subscribers_is_left(nats_url: str) -> None:
    engine = FakeEngine()
    engine.hold_after(1)
    async with running_worker(nats_url, engine), await nats.connect(nats_url) as nc:
        stays, leaves = [await nc.subscribe("ml.watch.screen") for _ in range(2)]
        await nc.publish("ml.generate", json.dumps(FIELDS).encode(), "ml.watch.screen", STREAM)
        first = await leaves.next_msg(timeout=20)
        await leaves.unsubscribe()
        await nc.flush()
        engine.release(words_s=0.002)
        found = await frames(stays)
    assert found[0].data == first.data
    assert "".join(json.loads(message.data)["text"] for message in found[:-1]) == TEXT
    assert not engine.aborts


async def test_the_client_role_may_generate_and_cancel(
    secured_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_USER", "worker")
    monkeypatch.setenv("NATS_PASSWORD", PASSWORDS["worker"])
    denied: list[Exception] = []

    async def note(error: Exception) -> None:
        denied.append(error)

    role = {"user": "client", "password": PASSWORDS["client"], "inbox_prefix": b"_INBOX_ml.client", "error_cb": note}
    async with running_worker(secured_server.url, FakeEngine()), await nats.connect(secured_server.url, **role) as nc:
        found = await streamed(nc, json.dumps(FIELDS).encode())
        check_headers(found, "application/json")
        batch = await nc.request("ml.generate.batch", b'{"prompts": ["a"], "max_tokens": 1}', timeout=20)
        assert json.loads(batch.data)["results"][0]["text"] == " 0"
        await nc.publish("ml.cancel.any", b"")
        await nc.flush()
    assert denied == []
