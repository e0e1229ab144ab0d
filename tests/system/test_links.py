"""What becomes of requests when a link breaks: the worker's connection, the server, the caller's."""

import asyncio
import json
import os
import signal
import socket
from contextlib import contextmanager
from typing import Any

import nats
import numpy as np
import pytest
from cuttable import cuttable
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from http_probe import scrape
from nats.aio.client import Client
from nats_server import PASSWORDS, NatsServer
from workers import running_worker

from service.app import worker
from service.bus.client import BusClient
from service.bus.connection import settled
from service.bus.held_messages import HeldMessages
from service.endpoint.call import MAX_KEPT_BYTES, Call
from service.endpoint.reply_subject import PREFIXES
from service.runtime.stop import Stop
from service.settings import Settings
from subjects import MLClient, codec, names
from subjects.client.discovery import ask_workers
from subjects.errors import Cancelled, Internal

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
    """Return once a worker answers a ping; one that went to a connection just cut is never answered."""
    async with asyncio.timeout(30):
        while True:
            try:
                await nc.request("$SRV.PING.ml", b"", timeout=2)
            except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
                await asyncio.sleep(0.01)
            else:
                return


class WideEncoder(FakeEncoder):
    """Vectors that fill a message by the hundred."""

    dimensions = 4096

    def encode(self, batch, between_layers=None):
        self.entered.set()
        assert self.gate.wait(60)
        return np.ones((len(batch), self.dimensions), np.float32)


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


@pytest.fixture
def patiently(monkeypatch):
    """Callers may take long to come back, as on a slow machine."""
    monkeypatch.setattr("service.bus.held_messages.RETURN_S", 60)


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
        await settled(listener)
        for subject in (names.EMBED, names.EMBED, "$SRV.PING.ml"):
            await nc.publish(subject, b"x", reply=reply)
        await nc.flush()
        await nc.request(names.EMBED, b"y", timeout=10)
        assert heard.pending_msgs == 0
        assert "mlbus_unanswerable_requests_total 3.0" in await asyncio.to_thread(scrape, started.metrics_port)
    told, *_ = [line for line in journal.lines if line["event"] == "request.unanswerable"]
    assert (told["reply"], told["reply_prefixes"]) == (reply, PREFIXES)
    assert len(encoder.seen) == 1


def headed(block: bytes) -> bytes:
    """A request for vectors with this block of headers."""
    return b"HPUB ml.embed _INBOX.x %d %d\r\n%s\r\n" % (len(block), len(block), block)


@pytest.mark.parametrize(
    "line",
    [
        b"PUB ml.embed _INBOX.\xff 0\r\n\r\n",
        b"PUB ml.cancel.\xff 0\r\n\r\n",
        b"PUB $SRV.PING \xff 0\r\n\r\n",
        headed(b"abcd"),
        headed(b"NATS/1.0 503 \xff\r\n\r\n"),
    ],
)
async def test_a_message_that_cannot_be_read_is_dropped_and_told(nats_server, encoder, journal, line):
    """One such message used to make every worker that got it deaf for a minute."""
    async with running_worker(nats_server.url, encoder), await nats.connect(nats_server.url) as nc:
        with socket.create_connection(("127.0.0.1", nats_server.port)) as raw:
            raw.sendall(b'CONNECT {"verbose":false,"headers":true}\r\n' + line)
            assert (await journal.until("bus.message_unreadable"))["reason"]
        assert "embedding" in json.loads((await nc.request(names.EMBED, b"a", timeout=10)).data)


async def test_answers_do_not_wait_for_a_clock_to_be_forgotten(nats_url, monkeypatch):
    """A stream of vectors stood still at 4 MiB, and everybody's answers with it, until the server was asked again."""
    monkeypatch.setattr("service.bus.client.CONFIRM_S", 300)
    async with running_worker(nats_url, WideEncoder()), await nats.connect(nats_url) as nc:
        frames = await streamed(nc, names.EMBED_BATCH, {"texts": [f"text {i}" for i in range(2000)]})
        assert (await to_the_end(frames))[-1].headers[names.EVENT] == "done"


async def test_any_number_of_subscribers_watch_one_stream(secured_server, engine):
    async with (
        running_worker(as_worker(secured_server.address), engine),
        await nats.connect(secured_server.url) as nc,
        await nats.connect(secured_server.url) as other,
    ):
        watching = [await each.subscribe("ml.watch.demo") for each in (nc, other)]
        await settled(other)
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


async def test_a_caller_that_may_not_be_asked_is_asked_once(secured_server, engine, monkeypatch):
    monkeypatch.setattr("service.endpoint.endpoint.ASK_S", 0.01)
    engine.gate.clear()
    as_admin = f"nats://admin:{PASSWORDS['admin']}@{secured_server.address}"
    async with (
        running_worker(as_worker(secured_server.address), engine, reply_prefixes=(*PREFIXES, "team")),
        await nats.connect(as_admin, inbox_prefix="_INBOX_ml.admin") as nc,
    ):
        body = json.dumps({"prompt": "a", "max_tokens": 500}).encode()
        asked = asyncio.create_task(nc.request(names.GENERATE, body, timeout=20, headers={names.CALLER: "team.x"}))
        assert await asyncio.to_thread(engine.entered.wait, 10)
        while not violations(secured_server):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        engine.release(0.001)
        assert (await asked).headers.get(names.ERROR_CODE) is None
    assert len(violations(secured_server)) == 1


class TestACallerThatLeaves:
    """Clients whose requests share one inbox never leave their reply subject: Ml-Caller says where to ask instead."""

    async def test_the_work_for_one_reply_ends(self, nats_url, engine):
        engine.gate.clear()
        async with running_worker(nats_url, engine), await nats.connect(nats_url) as nc:
            caller = await nc.subscribe(nc.new_inbox())
            asked = asyncio.create_task(
                nc.request(names.GENERATE, b"a", timeout=20, headers={names.CALLER: caller.subject})
            )
            probe = await caller.next_msg(timeout=10)
            assert (probe.data, probe.headers[names.EVENT]) == (b"probe", "probe")
            await caller.unsubscribe()
            assert (await asked).headers[names.ERROR_CODE] == "499"
            engine.gate.set()
            assert await asyncio.to_thread(engine.aborted.wait, 10)

    async def test_a_stream_ends_and_its_frames_ask_nothing(self, nats_url, engine):
        engine.hold_after(20)
        async with running_worker(nats_url, engine), await nats.connect(nats_url) as nc:
            caller = await nc.subscribe(nc.new_inbox())
            body = {"prompt": "a", "max_tokens": 1000}
            frames = await streamed(nc, names.GENERATE, body, Ml_Caller=caller.subject)
            await caller.next_msg(timeout=10)
            await caller.unsubscribe()
            engine.release(0.01)
            came = await to_the_end(frames)
            assert came[-1].headers[names.ERROR_CODE] == "499"
            assert len(came) < 200
            assert {frame.reply for frame in came} == {""}

    async def test_all_requests_of_one_caller_end_and_those_of_others_do_not(self, nats_url, encoder):
        encoder.gate.clear()
        async with running_worker(nats_url, encoder), await nats.connect(nats_url) as nc:
            callers = [await nc.subscribe(nc.new_inbox()) for _ in range(2)]
            mine, other = (
                [
                    asyncio.create_task(nc.request(names.EMBED, b"a", timeout=20, headers={names.CALLER: one.subject}))
                    for _ in range(3)
                ]
                for one in callers
            )
            await callers[0].next_msg(timeout=10)
            await callers[0].unsubscribe()
            assert {reply.headers[names.ERROR_CODE] for reply in await asyncio.gather(*mine)} == {"499"}
            encoder.gate.set()
            assert all(names.ERROR_CODE not in reply.headers for reply in await asyncio.gather(*other))

    @pytest.mark.parametrize(
        "caller",
        ["the reply subject", "$JS.API.STREAM.DELETE.x", "_INBOX_worker.x", "ml.embed", "_INBOX." + 4096 * "x"],
    )
    async def test_a_subject_that_may_not_be_asked_is_refused(self, nats_url, encoder, caller):
        async with running_worker(nats_url, encoder), await nats.connect(nats_url) as nc:
            replies = await nc.subscribe(nc.new_inbox())
            named = replies.subject if caller == "the reply subject" else caller
            await nc.publish(names.EMBED, b"a", replies.subject, {names.CALLER: named})
            refused = await replies.next_msg(timeout=10)
            assert refused.headers[names.ERROR_CODE] == "422"
            assert names.CALLER in refused.headers[names.ERROR]

    async def test_a_client_of_ours_is_heard_to_go(self, nats_url, engine):
        engine.gate.clear()
        async with running_worker(nats_url, engine), await nats.connect(nats_url) as nc:
            ml = MLClient(nc, timeout_s=30)
            asked = [asyncio.create_task(ml.generate(prompt, max_tokens=1000)) for prompt in ("a", "b")]
            assert await asyncio.to_thread(engine.entered.wait, 10)
            await ml.close()
            for one in asked:
                with pytest.raises(Cancelled):
                    await one
            engine.slow(0.01)
            engine.gate.set()
            assert await asyncio.to_thread(engine.aborted.wait, 10)

    async def test_a_client_of_ours_asks_nothing_after_its_close(self, nats_url, encoder):
        """Its requests would name a subject that nobody listens on any more."""
        async with running_worker(nats_url, encoder), await nats.connect(nats_url) as nc:
            ml = MLClient(nc)
            await ml.embed("a")
            asked = await nc.subscribe(">")
            await ml.close()
            for late in (ml.embed("b"), ml.embed_batch(["b"]), anext(ml.jobs.watch("b"))):
                with pytest.raises(Cancelled, match="this client was closed"):
                    await late
            await nc.flush()
            assert asked.pending_msgs == 0


async def test_the_embedded_server_killed_is_started_again_and_its_worker_goes_on(tmp_path, encoder):
    """The worker used to exit at once, its callers unanswered."""
    settings = Settings(embedded_nats=True, nats_port=0, data_dir=tmp_path, metrics_port=-1)
    stop = Stop()
    encoder.gate.clear()
    async with worker(settings, stop, [encoder]) as started:
        assert started.server is not None
        back = asyncio.Event()

        async def reconnected() -> None:
            back.set()

        link = {"reconnect_time_wait": 0.05, "reconnected_cb": reconnected}
        async with await nats.connect(started.server.url, **link) as nc:
            asked = asyncio.create_task(nc.request(names.EMBED, b"a", timeout=30))
            assert await asyncio.to_thread(encoder.entered.wait, 10)
            os.kill(started.server.pid, signal.SIGKILL)
            await asyncio.wait_for(back.wait(), 20)
            await until_it_listens(nc)
            encoder.gate.set()
            assert "embedding" in json.loads((await asked).data)
            assert "embedding" in json.loads((await nc.request(names.EMBED, b"b", timeout=10)).data)
    assert not stop.requested.is_set()


def numbers(frames: list[Any]) -> list[int]:
    return [int(frame.headers[names.SEQ]) for frame in frames]


async def test_what_the_server_may_not_have_got_is_sent_again(secured_server, engine):
    """Frames that were on their way when the connection broke: a plain client may see one twice, and misses none."""
    async with (
        cuttable(secured_server) as relay,
        await nats.connect(secured_server.url) as nc,
        running_worker(as_worker(relay.address), engine),
    ):
        engine.slow(0.05)
        ours = MLClient(nc, timeout_s=30).stream("b", max_tokens=WORDS)
        text = (await anext(ours)).text
        plain = await streamed(nc, names.GENERATE, {"prompt": "a", "max_tokens": WORDS})
        first = await plain.next_msg(timeout=20)
        relay.swallow()
        await relay.swallowed(b'"seq":')
        relay.cut()
        await until_it_listens(nc)
        engine.release()
        came = [first, *await to_the_end(plain)]
        first_seen = list(dict.fromkeys(numbers(came)))
        assert first_seen == list(range(len(first_seen)))
        assert came[-1].headers[names.EVENT] == "done"
        async for frame in ours:
            text += getattr(frame, "text", "")
        assert text == "".join(f" {number}" for number in range(WORDS))


async def test_a_reply_waits_for_the_connection(secured_server, encoder, journal):
    async with (
        cuttable(secured_server) as relay,
        await nats.connect(secured_server.url) as nc,
        running_worker(as_worker(relay.address), encoder),
    ):
        encoder.gate.clear()
        asked = asyncio.create_task(nc.request(names.EMBED, b"a", timeout=20))
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        relay.open.clear()
        relay.cut()
        await journal.until("bus.disconnected")
        encoder.gate.set()
        relay.open.set()
        assert "embedding" in json.loads((await asked).data)


async def test_a_worker_that_stops_waits_for_callers_that_are_not_back(nats_server, encoder, journal, patiently):
    """Each answer that it holds is sent once its caller listens again."""
    ready, stop = asyncio.Event(), asyncio.Event()

    async def serving() -> None:
        async with running_worker(nats_server.url, encoder):
            ready.set()
            await stop.wait()

    async with (
        cuttable(nats_server) as relay,
        await nats.connect(f"nats://{relay.address}", reconnect_time_wait=0.01) as nc,
    ):
        worker = asyncio.create_task(serving())
        await asyncio.wait_for(ready.wait(), 20)
        encoder.gate.clear()
        asked = asyncio.create_task(nc.request(names.EMBED, b"a", timeout=20))
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        relay.open.clear()
        nats_server.restart()
        await journal.until("bus.reconnected")
        encoder.gate.set()
        stop.set()
        await journal.until("endpoint.draining")
        relay.open.set()
        assert "embedding" in json.loads((await asked).data)
        await worker


async def test_callers_that_stay_away_hold_up_no_others(nats_server, journal, monkeypatch, patiently):
    """What waits for them is bounded: a stream stands still at a bound of its own."""
    encoder = WideEncoder()
    encoder.gate.clear()
    async with (
        cuttable(nats_server) as relay,
        await nats.connect(f"nats://{relay.address}", reconnect_time_wait=0.01) as away,
        await nats.connect(nats_server.url, reconnect_time_wait=0.01) as here,
    ):
        held: list[int] = []
        full = asyncio.Event()
        add = HeldMessages.add

        def noted(self, kept):
            add(self, kept)
            held.append(self.size_bytes)
            if self.size_bytes > MAX_KEPT_BYTES:
                full.set()

        monkeypatch.setattr(HeldMessages, "add", noted)
        async with running_worker(nats_server.url, encoder):
            frames = await streamed(away, names.EMBED_BATCH, {"texts": [f"text {i}" for i in range(2000)]})
            assert await asyncio.to_thread(encoder.entered.wait, 10)
            relay.open.clear()
            nats_server.restart()
            await journal.until("bus.reconnected")
            await until_it_listens(here)
            encoder.gate.set()
            await asyncio.wait_for(full.wait(), 20)
            reply = await here.request(names.EMBED_BATCH, b'{"texts": ["a", "b"]}', timeout=20)
            assert len(json.loads(reply.data)["embeddings"]) == 2
            relay.open.set()
            came = await to_the_end(frames)
        assert list(dict.fromkeys(numbers(came))) == list(range(len(set(numbers(came)))))
        assert json.loads(came[-1].data)["count"] == 2000
    assert max(held) < MAX_KEPT_BYTES + 2 * here.max_payload


async def test_an_answer_that_comes_twice_is_one_worker(nats_server, monkeypatch):
    """Of all workers one has lost its connection, and sends its answer again."""
    monkeypatch.setattr("service.bus.client.CONFIRM_S", 300)
    async with (
        cuttable(nats_server) as relay,
        await nats.connect(nats_server.url) as nc,
        running_worker(f"nats://{relay.address}"),
    ):
        heard, asked = await nc.subscribe("_INBOX.>"), await nc.subscribe(names.MODELS_RELOAD)
        changed = asyncio.create_task(MLClient(nc, timeout_s=20).models.reload_all("nope", 2))
        request = await asked.next_msg(timeout=10)
        first = await heard.next_msg(timeout=10)
        relay.cut()
        second = await heard.next_msg(timeout=10)
        assert (first.data, first.headers) == (second.data, second.headers)
        error = Internal("of the other worker")
        own = {name: request.headers[name] for name in (names.REQUEST_ID, names.CONTENT_TYPE)}
        body = codec.dumps_error(error, own[names.REQUEST_ID], own[names.CONTENT_TYPE])
        await nc.publish(request.reply, body, headers=error.headers() | own | {names.WORKER: "other"})
        assert [answer.code for answer in await changed] == [404, 500]


async def test_answers_wait_for_callers_that_are_back_after_their_worker(
    nats_server, engine, journal, monkeypatch, patiently
):
    """The server is started again; what the worker sent before its callers had subscribed again was lost."""
    closed = asyncio.Semaphore(0)
    close = Call.close

    async def noted(call):
        await close(call)
        closed.release()

    monkeypatch.setattr(Call, "close", noted)
    async with (
        cuttable(nats_server) as relay,
        await nats.connect(f"nats://{relay.address}", reconnect_time_wait=0.01) as nc,
        running_worker(nats_server.url, engine),
    ):
        engine.slow(0.02)
        asked = {"prompt": "a", "max_tokens": WORDS}
        whole = asyncio.create_task(nc.request(names.GENERATE, json.dumps(asked).encode(), timeout=20))
        words = await streamed(nc, names.GENERATE, asked)
        ours = MLClient(nc, timeout_s=30).stream("a", max_tokens=WORDS)
        text, first = (await anext(ours)).text, await words.next_msg(timeout=20)
        engine.hold_after(1)
        relay.open.clear()
        nats_server.restart()
        await journal.until("bus.reconnected")
        engine.release()
        for _ in range(3):
            await asyncio.wait_for(closed.acquire(), 10)
        relay.open.set()
        came = [first, *await to_the_end(words)]
        assert list(dict.fromkeys(numbers(came))) == list(range(len(set(numbers(came)))))
        assert came[-1].headers[names.EVENT] == "done"
        async for frame in ours:
            text += getattr(frame, "text", "")
        assert text == json.loads((await whole).data)["text"] == "".join(f" {n}" for n in range(WORDS))


async def test_a_stream_that_finds_too_much_kept_waits_for_the_connection(secured_server, journal, monkeypatch):
    """What is kept is bounded: the stream goes on when the connection is back, and misses nothing."""
    kept: list[int] = []
    full = asyncio.Event()
    send = BusClient.publish_kept

    async def noted(self, *arguments, **named):
        await send(self, *arguments, **named)
        kept.append(self.kept_bytes)
        if self.kept_bytes > MAX_KEPT_BYTES:
            full.set()

    monkeypatch.setattr(BusClient, "publish_kept", noted)
    encoder = WideEncoder()
    encoder.gate.clear()
    async with (
        cuttable(secured_server) as relay,
        await nats.connect(secured_server.url) as nc,
        running_worker(as_worker(relay.address), encoder),
    ):
        frames = await streamed(nc, names.EMBED_BATCH, {"texts": [f"text {i}" for i in range(2000)]})
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        relay.open.clear()
        relay.cut()
        await journal.until("bus.disconnected")
        encoder.gate.set()
        await asyncio.wait_for(full.wait(), 20)
        relay.open.set()
        came = await to_the_end(frames)
        assert list(dict.fromkeys(numbers(came))) == list(range(len(came)))
        assert json.loads(came[-1].data)["count"] == 2000
    assert max(kept) < MAX_KEPT_BYTES + 2 * nc.max_payload


@contextmanager
def clustered(folder, *options):
    """Two servers that know each other; the second with these options."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        route = f"nats://127.0.0.1:{free.getsockname()[1]}"
    one = NatsServer(folder / "one", "--cluster_name", "c", "--cluster", route)
    two = NatsServer(
        folder / "two", "--cluster_name", "c", "--cluster", "nats://127.0.0.1:-1", "--routes", route, *options
    )
    try:
        yield one.start(), two.start()
    finally:
        for server in (one, two):
            server.kill()


@pytest.fixture
def cluster(tmp_path):
    with clustered(tmp_path) as servers:
        yield servers


async def test_a_worker_that_reaches_no_other_server_comes_back_to_the_one_it_left(tmp_path, journal):
    """Of a cluster a client is told addresses that it may not reach; the one it had may be started again."""
    with clustered(tmp_path, "--client_advertise", "127.0.0.1:9") as (leaving, _):
        async with running_worker(leaving.url), await nats.connect(leaving.url) as nc:
            async with asyncio.timeout(20):
                while len(nc.servers) < 2:
                    await nc.flush()
            leaving.lame_duck()
            await journal.until("bus.failed")
            leaving.kill()
            leaving.start()
            assert (await journal.until("bus.reconnected", 20))["url"] == leaving.url


async def test_a_worker_leaves_a_server_that_is_about_to_close_and_loses_nothing(cluster, journal):
    """It used to stay until the server closed the connection."""
    leaving, staying = cluster
    async with (
        await nats.connect(staying.url) as nc,
        running_worker(leaving.url),
        running_worker(staying.url),
    ):
        async with asyncio.timeout(20):
            while len(await ask_workers(nc, "PING", 2, 0.2)) < 2:
                pass
        answered = 0
        over = asyncio.Event()

        async def asking() -> None:
            nonlocal answered
            while not over.is_set():
                assert "embedding" in json.loads((await nc.request(names.EMBED, b"a", timeout=10)).data)
                answered += 1

        async with asyncio.TaskGroup() as callers:
            for _ in range(8):
                callers.create_task(asking())
            leaving.lame_duck()
            try:
                assert (await journal.until("bus.reconnected", 8))["url"] == staying.url
            finally:
                over.set()
        assert answered


async def test_a_worker_that_stops_while_its_connection_moves_gets_no_more_requests(secured_server, encoder, journal):
    """The new connection used to subscribe again, to requests that nobody answered."""
    ready, stop = asyncio.Event(), asyncio.Event()
    async with cuttable(secured_server) as relay, await nats.connect(secured_server.url) as nc:

        async def serving() -> None:
            async with running_worker(as_worker(relay.address), encoder):
                ready.set()
                await stop.wait()

        worker = asyncio.create_task(serving())
        await asyncio.wait_for(ready.wait(), 20)
        encoder.gate.clear()
        asked = asyncio.create_task(nc.request(names.EMBED, b"a", timeout=20))
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        relay.swallow()
        stop.set()
        await relay.swallowed(b"UNSUB")
        relay.cut()
        await journal.until("bus.reconnected")
        with pytest.raises(nats.errors.NoRespondersError):
            await nc.request(names.EMBED, b"b", timeout=5)
        encoder.gate.set()
        assert "embedding" in json.loads((await asked).data)
        await worker
    assert "endpoint.fence_failed" not in [line["event"] for line in journal.lines]
