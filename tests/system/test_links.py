"""What becomes of requests when a link breaks: the worker's connection, the server, the caller's."""

import asyncio
import json
import urllib.request
from typing import Any

import nats
import pytest
import structlog
from cuttable import cuttable
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from journal import Journal
from nats.aio.client import Client
from nats_server import PASSWORDS, NatsServer
from workers import running_worker

from service.reply_subject import PREFIXES
from subjects import names

WORDS = 40


def as_worker(address: str) -> str:
    return f"nats://worker:{PASSWORDS['worker']}@{address}"


def violations(server: NatsServer) -> list[str]:
    return [line for line in server.lines if "Violation" in line]


async def streamed(nc: Client, subject: str, body: dict[str, Any], **headers: str) -> Any:
    """A streamed request's subscription; its messages are there to be taken."""
    inbox = nc.new_inbox()
    frames = await nc.subscribe(inbox)
    sent = {names.STREAM: "true", **{name.replace("_", "-"): value for name, value in headers.items()}}
    await nc.publish(subject, json.dumps(body).encode(), inbox, sent)
    return frames


async def to_the_end(frames: Any) -> list[Any]:
    """What comes until the sentinel."""
    came = []
    while (message := await frames.next_msg(timeout=20)).data:
        came.append(message)
    return came


async def until_it_listens(nc: Client) -> None:
    """Return once a worker answers a ping."""
    async with asyncio.timeout(20):
        while True:
            try:
                await nc.request("$SRV.PING.ml", b"", timeout=5)
            except nats.errors.NoRespondersError:
                await asyncio.sleep(0.01)
            else:
                return


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        return response.read().decode()


@pytest.fixture
def journal():
    journal = Journal()
    structlog.configure(processors=[journal])
    yield journal
    structlog.reset_defaults()


@pytest.fixture
def engine():
    engine = FakeEngine()
    yield engine
    engine.gate.set()


@pytest.fixture
def encoder():
    encoder = FakeEncoder()
    yield encoder
    encoder.gate.set()


async def test_a_stream_and_a_batch_outlive_the_workers_connection(secured_server, engine, encoder):
    """The right to answer used to end with the connection that had received the request."""
    async with (
        cuttable(secured_server) as relay,
        await nats.connect(secured_server.url) as nc,
        running_worker(as_worker(relay.address), encoder, engine),
    ):
        engine.hold_after(3)
        encoder.gate.clear()
        words = await streamed(nc, names.GENERATE, {"prompt": "a", "max_tokens": WORDS})
        vectors = await streamed(nc, names.EMBED_BATCH, {"texts": ["a", "b"]})
        whole = asyncio.create_task(nc.request(names.EMBED, b"c", timeout=20))
        await words.next_msg(timeout=20)
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        relay.cut()
        await until_it_listens(nc)
        engine.release()
        encoder.gate.set()
        ends = [frames[-1].headers[names.EVENT] for frames in (await to_the_end(words), await to_the_end(vectors))]
        assert ends == ["done", "done"]
        assert len(json.loads((await whole).data)["embedding"]) == encoder.dimensions
    assert violations(secured_server) == []


@pytest.mark.parametrize(
    "reply", ["$JS.API.STREAM.DELETE.ML_JOBS", "ml.models.unload", "_INBOX_worker.x", "elsewhere.x"]
)
async def test_a_request_with_another_reply_subject_is_dropped_counted_and_told(nats_url, encoder, journal, reply):
    async with (
        running_worker(nats_url, encoder, metrics_port=0) as started,
        await nats.connect(nats_url) as nc,
        await nats.connect(nats_url) as listener,
    ):
        heard = await listener.subscribe(reply)
        await listener.flush()
        for subject in (names.EMBED, names.EMBED, "$SRV.PING.ml"):
            await nc.publish(subject, b"x", reply=reply)
        await nc.flush()
        await nc.request(names.EMBED, b"y", timeout=10)
        assert heard.pending_msgs == 0
        assert "mlbus_unanswerable_requests_total 3.0" in await asyncio.to_thread(scrape, started.metrics_port)
    (told,) = [line for line in journal.lines if line["event"] == "request.unanswerable"]
    assert (told["reply"], told["reply_prefixes"]) == (reply, PREFIXES)
    assert len(encoder.seen) == 1


async def test_any_number_of_subscribers_watch_one_stream(secured_server, engine):
    async with (
        running_worker(as_worker(secured_server.address), engine),
        await nats.connect(secured_server.url) as nc,
        await nats.connect(secured_server.url) as other,
    ):
        watching = [await each.subscribe("ml.watch.demo") for each in (nc, other)]
        await other.flush()
        body = json.dumps({"prompt": "a", "max_tokens": 5}).encode()
        await nc.publish(names.GENERATE, body, "ml.watch.demo", {names.STREAM: "true"})
        texts = ["".join(json.loads(frame.data).get("text", "") for frame in await to_the_end(one)) for one in watching]
        assert texts == [" 0 1 2 3 4"] * 2
    assert violations(secured_server) == []


async def test_a_reply_that_is_denied_ends_its_work_and_is_counted(secured_server, engine, journal):
    """The settings may allow what the server does not; nats-py tells of it in lower case."""
    engine.hold_after(1)
    as_admin = f"nats://admin:{PASSWORDS['admin']}@{secured_server.address}"
    prefixes = (*PREFIXES, "Team")
    async with (
        running_worker(as_worker(secured_server.address), engine, metrics_port=0, reply_prefixes=prefixes) as started,
        await nats.connect(as_admin) as nc,
    ):
        await nc.publish(names.GENERATE, b"a", "Team.Inbox.X", {names.STREAM: "true"})
        assert (await journal.until("bus.permission_denied"))["subject"] == "team.inbox.x"
        engine.release(0.01)
        assert await asyncio.to_thread(engine.aborted.wait, 10)
        assert "mlbus_replies_denied_total 1.0" in await asyncio.to_thread(scrape, started.metrics_port)
    assert len(violations(secured_server)) == 1
