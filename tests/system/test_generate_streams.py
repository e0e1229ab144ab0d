"""Streams of generated text over a real server: frames, their end, and everything that may cut them short."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from contextlib import AsyncExitStack

import nats
import pytest
from fake_engine import CONTEXT, FakeEngine
from fake_loader import FakeLoader
from gates import entered
from structlog.testing import capture_logs
from workers import running_worker

from service.generation.event_queue import LIMIT_CHARS
from subjects import MLClient, names
from subjects.errors import InvalidField


class Stream:
    """One request's frames, as they come. frames: (event, body) of those that have been read."""

    def __init__(self, nc, subscription) -> None:
        self.nc = nc
        self.subscription = subscription
        self.frames: list[tuple[str, dict]] = []

    @classmethod
    async def begin(cls, nc, fields: dict, subject: str = names.GENERATE, **headers: str) -> "Stream":
        inbox = nc.new_inbox()
        stream = cls(nc, await nc.subscribe(inbox))
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if "stream" not in fields:
            sent = {names.STREAM: "true"} | sent
        await nc.publish(subject, json.dumps(fields).encode(), inbox, sent)
        return stream

    async def frame(self) -> tuple[str, dict] | None:
        """The next frame; None for the sentinel."""
        message = await self.subscription.next_msg(timeout=20)
        if not message.data:
            assert message.headers is None
            return None
        body = json.loads(message.data)
        assert int(message.headers[names.SEQ]) == len(self.frames)
        if names.ERROR_CODE not in message.headers:
            assert body["seq"] == len(self.frames)
        self.frames.append((message.headers[names.EVENT], body))
        return self.frames[-1]

    async def rest(self) -> list[tuple[str, dict]]:
        while await self.frame():
            pass
        assert self.subscription.pending_msgs == 0
        return self.frames

    def text(self, **place: int) -> str:
        tokens = [body for event, body in self.frames if event == "token"]
        return "".join(body["text"] for body in tokens if place.items() <= body.items())


def counted(words: int) -> str:
    return "".join(f" {number}" for number in range(words))


async def aborted(engine: FakeEngine) -> None:
    assert await asyncio.to_thread(engine.aborted.wait, 30)


async def test_tokens_then_done_then_the_sentinel(nc):
    stream = await Stream.begin(nc, {"prompt": "a b", "max_tokens": 100, "seed": 3}, Ml_Request_Id="r")
    *tokens, (event, done) = await stream.rest()
    assert {event for event, _ in tokens} == {"token"}
    assert stream.text() == counted(100)
    assert tokens[0][1] == {"seq": 0, "text": " 0"}
    assert len(tokens) < 100
    assert (event, done) == (
        "done",
        {
            "seq": len(tokens),
            "model": "tiny_coder",
            "version": "fake-fp32",
            "usage": {"prompt_tokens": 2, "cached_tokens": 0, "completion_tokens": 100},
            "finish_reason": "length",
            "seed": 3,
        },
    )


async def test_the_first_token_goes_out_before_the_second_is_made(nc, engine):
    engine.gate.clear()
    stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 2})
    await entered(engine)
    engine.hold_after(1)
    assert await stream.frame() == ("token", {"seq": 0, "text": " 0"})
    engine.release()
    await stream.rest()
    assert stream.text() == " 0 1"


async def test_the_body_may_ask_for_a_stream_as_the_header_does(nc):
    for headers in ({}, {"Ml_Stream": "true"}):
        stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 2, "stream": True}, **headers)
        assert [event for event, _ in await stream.rest()][-1] == "done"
        assert stream.text() == " 0 1"
    stream = await Stream.begin(nc, {"prompts": ["a"], "max_tokens": 2, "stream": True}, names.GENERATE_BATCH)
    assert (await stream.rest())[-1][1]["choices"][0]["index"] == 0


@pytest.mark.parametrize("fields", [{"max_tokens": 0}, {"stream": True, "temprature": 1}, {"num_beams": 2}])
async def test_what_asked_for_a_stream_in_its_body_is_refused_in_frames(nc, fields):
    stream = await Stream.begin(nc, {"prompt": "a", "stream": True} | fields)
    ((event, body),) = await stream.rest()
    assert (event, body["error"]["code"]) == ("error", 422)


@pytest.mark.parametrize(("header", "stream"), [("true", False), ("false", True), ("auto", True), ("true", "auto")])
async def test_header_and_body_must_agree(nc, header, stream):
    fields = json.dumps({"prompt": "a", "stream": stream}).encode()
    inbox = nc.new_inbox()
    replies = await nc.subscribe(inbox)
    await nc.publish(names.GENERATE, fields, inbox, {names.STREAM: header})
    error = json.loads((await replies.next_msg(timeout=20)).data)["error"]
    assert error["code"] == 422
    assert "'stream' and the header Ml-Stream differ" in error["message"]


@pytest.mark.parametrize("stream", ["true", 1, "yes"])
async def test_stream_is_true_false_or_auto(nc, stream):
    reply = await nc.request(names.GENERATE, json.dumps({"prompt": "a", "stream": stream}).encode(), timeout=20)
    assert "'stream" in json.loads(reply.data)["error"]["message"]


async def test_the_clients_calls_say_themselves_whether_they_stream(nc):
    with pytest.raises(InvalidField, match="`stream` and `embed_stream` give a stream"):
        await MLClient(nc).generate("a", stream=True)


async def test_a_hundred_streams_at_once_each_in_order(nc):
    async def one(number: int) -> str:
        stream = await Stream.begin(nc, {"prompt": f"prompt {number}", "max_tokens": 20 + number})
        await stream.rest()
        return stream.text()

    assert await asyncio.gather(*map(one, range(100))) == [counted(20 + number) for number in range(100)]


async def test_text_streams_print_as_they_are(nc):
    inbox = nc.new_inbox()
    frames = await nc.subscribe(inbox)
    await nc.publish(names.GENERATE, b"def f():", inbox, {names.STREAM: "true"})
    bodies = []
    while (message := await frames.next_msg(timeout=20)).data:
        bodies.append(message.data)
        last = message
    assert b"".join(bodies).decode() == counted(256) + "\n"
    assert json.loads(last.headers[names.RESULT])["finish_reason"] == "length"


async def test_choices_and_prompts_are_told_apart(nc):
    several = await Stream.begin(nc, {"prompt": "a", "max_tokens": 30, "n": 3, "seed": 1, "echo": True})
    await several.rest()
    assert [several.text(choice=choice) for choice in range(3)] == ["a" + counted(30)] * 3
    ends = several.frames[-1][1]["choices"]
    assert [(end["choice"], end["seed"], end["finish_reason"]) for end in ends] == [
        (0, 1, "length"),
        (1, 2, "length"),
        (2, 3, "length"),
    ]
    asked = {"prompts": ["a", "poison", "b c"], "max_tokens": 30, "n": 2}
    batch = await Stream.begin(nc, asked, names.GENERATE_BATCH)
    await batch.rest()
    assert [batch.text(index=index, choice=1) for index in range(3)] == [counted(30), "", counted(30)]
    event, done = batch.frames[-1]
    assert event == "done"
    assert [end.get("error", {}).get("code") for end in done["choices"]] == [None, None, 500, 500, None, None]
    assert done["usage"]["completion_tokens"] == 120


async def test_a_long_piece_is_cut_to_the_limit_of_a_message(nats_server, engine):
    word = " " + "é\n" * 30_000
    engine.scripts["a"] = [word]
    async with running_worker(nats_server.url, engine), await nats.connect(nats_server.url) as nc:
        stream = await Stream.begin(nc, {"prompt": "a", "logprobs": 20})
        await stream.rest()
        assert stream.text() == word


@pytest.mark.parametrize("max_tokens", [0, 3])
async def test_a_long_prompts_scores_come_in_frames_that_fit(nc, engine, max_tokens):
    """They are no sign of a reader that is too slow, however many come at once."""
    prompt = " ".join(f"word{number}" for number in range(CONTEXT - 3))
    asked = {"prompt": prompt, "max_tokens": max_tokens, "echo": True, "logprobs": 0}
    stream = await Stream.begin(nc, asked)
    *tokens, (event, done) = await stream.rest()
    assert stream.text() == prompt + counted(max_tokens)
    told = [one for _, body in tokens for one in body["logprobs"]]
    assert [one["id"] for one in told[: CONTEXT - 3]] == list(engine.requests["1.0"].prompt)
    assert "logprob" not in told[0]
    assert all("logprob" in one for one in told[1:])
    assert len(told) == CONTEXT - 3 + max_tokens
    assert (event, done["finish_reason"], len(tokens) > 2) == ("done", "length", True)


async def test_beams_are_not_streamed(nc):
    stream = await Stream.begin(nc, {"prompt": "a", "num_beams": 2})
    ((event, body),) = await stream.rest()
    assert (event, body["error"]["code"], "num_beams" in body["error"]["message"]) == ("error", 422, True)


async def test_a_cancelled_stream_says_how_far_it_came(nc, engine):
    engine.hold_after(3)
    stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 4000}, Ml_Request_Id="c")
    while stream.text() != counted(3):
        await stream.frame()
    await nc.publish(names.cancel_subject("c"), b"")
    await nc.flush()
    engine.release()
    event, done = (await stream.rest())[-1]
    assert (event, done["finish_reason"]) == ("done", "cancelled")
    made = done["usage"]["completion_tokens"]
    assert 3 <= made < 4000
    assert stream.text() == counted(made)


async def test_a_cancelled_batch_begins_no_more(nc, engine):
    engine.gate.clear()
    prompts = [f"prompt {number}" for number in range(100)]
    stream = await Stream.begin(nc, {"prompts": prompts, "max_tokens": 4000}, names.GENERATE_BATCH, Ml_Request_Id="c")
    await entered(engine)
    await nc.publish(names.cancel_subject("c"), b"")
    await nc.flush()
    engine.gate.set()
    event, done = (await stream.rest())[-1]
    assert (event, len(done["choices"])) == ("done", 100)
    assert {end["finish_reason"] for end in done["choices"]} == {"cancelled"}
    assert len(engine.requests) < 100


async def test_at_its_deadline_a_stream_says_how_far_it_came(nc, engine):
    engine.slow(0.005)
    stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 4000, "seed": 5}, Ml_Timeout_Ms="800")
    event, done = (await stream.rest())[-1]
    assert (event, done["finish_reason"], done["seed"]) == ("done", "timeout", 5)
    assert stream.text() == counted(done["usage"]["completion_tokens"])
    prompts = [f"prompt {number}" for number in range(100)]
    fields = {"prompts": prompts, "max_tokens": 4000}
    batch = await Stream.begin(nc, fields, names.GENERATE_BATCH, Ml_Timeout_Ms="800")
    event, done = (await batch.rest())[-1]
    assert (event, {end["finish_reason"] for end in done["choices"]}) == ("done", {"timeout"})
    assert len(done["choices"]) == 100


@pytest.mark.parametrize("steps", [0, 2])
async def test_a_deadline_ends_a_stream_that_has_not_begun_or_whose_step_has_no_end(nc, engine, steps):
    engine.hold_after(steps)
    stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 4000}, Ml_Timeout_Ms="600")
    *tokens, (event, body) = await stream.rest()
    assert (event, body["error"]["code"], bool(tokens)) == ("error", 408, steps > 0)
    engine.release()
    await aborted(engine)


async def test_a_caller_that_leaves_after_the_first_token_stops_the_work(nc, engine):
    engine.hold_after(1)
    stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 4000}, Ml_Request_Id="gone")
    assert await stream.frame()
    await stream.subscription.unsubscribe()
    await nc.flush()
    engine.release(words_s=0.01)
    await aborted(engine)
    assert engine.aborts == {"1.0": "cancelled"}
    assert sum(engine.steps) < 100


async def test_a_reply_subject_that_nobody_listens_on_stops_the_work(nc, engine):
    engine.slow(0.01)
    await nc.publish(names.GENERATE, b"a", nc.new_inbox(), {names.STREAM: "true"})
    await aborted(engine)
    assert sum(engine.steps) < 100


async def test_a_subscriber_that_never_reads_costs_the_others_nothing(nc, nats_server, engine):
    """The server holds what it cannot deliver, and in the end cuts its reader off."""
    engine.scripts["big"] = [" " + "x" * 16_000] * 4000
    host, _, port = nats_server.url.removeprefix("nats://").partition(":")
    hung = socket.create_connection((host, int(port)))
    with contextlib.closing(hung):
        hung.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        hung.sendall(b'CONNECT {"verbose":false,"pedantic":false,"headers":true}\r\nSUB _INBOX.hung 1\r\nPING\r\n')
        await asyncio.to_thread(until_pong, hung)
        fields = json.dumps({"prompt": "big", "max_tokens": 4000}).encode()
        await nc.publish(names.GENERATE, fields, "_INBOX.hung", {names.STREAM: "true"})
        await entered(engine)
        for _ in range(10):
            beside = await Stream.begin(nc, {"prompt": "b", "max_tokens": 100})
            await beside.rest()
            assert beside.text() == counted(100)


def until_pong(connection: socket.socket) -> None:
    """Return once the server has read what was sent to it."""
    read = b""
    while b"PONG" not in read:
        read += connection.recv(4096)


async def test_a_server_that_does_not_read_ends_the_stream_before_it_fills_memory(nats_server, engine):
    engine.scripts["a"] = ["x" * 30_000] * 2000
    engine.slow(0.005)
    async with (
        running_worker(nats_server.url, engine),
        await nats.connect(nats_server.url, ping_interval=300) as nc,
    ):
        stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 2000})
        for _ in range(10):
            await stream.frame()
        with capture_logs() as logs:
            os.kill(nats_server._process.pid, signal.SIGSTOP)
            try:
                await aborted(engine)
            finally:
                os.kill(nats_server._process.pid, signal.SIGCONT)
        *_, (event, body) = await stream.rest()
    assert (event, body["error"]["code"], str(LIMIT_CHARS) in body["error"]["message"]) == ("error", 499, True)
    assert "reader.too_slow" in {entry["event"] for entry in logs}
    assert sum(engine.steps) < 2000


async def test_pings_come_while_nothing_else_does(nc, engine):
    engine.gate.clear()
    stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 1}, Ml_Ping_Ms="100")
    assert [await stream.frame(), await stream.frame()] == [("ping", {"seq": 0}), ("ping", {"seq": 1})]
    engine.gate.set()
    frames = [frame for frame in await stream.rest() if frame[0] != "ping"]
    assert [event for event, _ in frames] == ["token", "done"]


async def test_pings_are_asked_for_within_bounds_and_not_as_text(nc):
    for value, accept in (("99", names.JSON), ("60001", names.JSON), ("x", names.JSON), ("1000", names.TEXT)):
        headers = {names.PING_MS: value, names.ACCEPT: accept}
        reply = await nc.request(names.GENERATE, b'{"prompt": "a"}', timeout=20, headers=headers)
        assert reply.headers[names.ERROR_CODE] == "400", value


async def test_a_step_that_raises_ends_every_stream_once(nc, engine):
    engine.slow(0.005)
    streams = [await Stream.begin(nc, {"prompt": f"a {number}", "max_tokens": 4000}) for number in range(5)]
    for stream in streams:
        await stream.frame()
    culprit = await Stream.begin(nc, {"prompt": "break", "max_tokens": 5})
    for stream in (*streams, culprit):
        frames = await stream.rest()
        assert [event for event, _ in frames if event != "token"] == ["error"]
        assert frames[-1][1]["error"]["code"] == 500
    after = await Stream.begin(nc, {"prompt": "c", "max_tokens": 3})
    await after.rest()
    assert after.text() == counted(3)


async def test_a_draining_worker_finishes_its_streams(nats_url, engine):
    async with AsyncExitStack() as stack, await nats.connect(nats_url) as nc:
        await stack.enter_async_context(running_worker(nats_url, engine))
        engine.hold_after(1)
        stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 50})
        await stream.frame()
        draining = asyncio.create_task(stack.aclose())
        await nobody_serves(nc)
        engine.release()
        assert (await stream.rest())[-1][0] == "done"
        assert stream.text() == counted(50)
        await draining


async def test_what_the_grace_time_leaves_gets_503(nats_url, engine):
    async with AsyncExitStack() as stack, await nats.connect(nats_url) as nc:
        await stack.enter_async_context(running_worker(nats_url, engine, grace_s=0.1))
        engine.hold_after(1)
        stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 4000})
        await stream.frame()
        draining = asyncio.create_task(stack.aclose())
        *_, (event, body) = await stream.rest()
        assert (event, body["error"]["code"], body["error"]["retryable"]) == ("error", 503, True)
        engine.release()
        await draining


async def test_a_reload_lets_streams_finish_on_the_old_engine(nats_url):
    loader = FakeLoader()
    async with running_worker(nats_url, loader=loader, models=("tiny_coder",)), await nats.connect(nats_url) as nc:
        (old,) = loader.engines["tiny_coder"]
        old.hold_after(1)
        stream = await Stream.begin(nc, {"prompt": "a", "max_tokens": 50})
        await stream.frame()
        reloading = asyncio.create_task(nc.request(names.MODELS_RELOAD, b"tiny_coder", timeout=20))
        await loaded(loader, 2)
        old.release(words_s=0.001)
        assert json.loads((await reloading).data)["loaded"]["version"] == "v2-fp32"
        new = await Stream.begin(nc, {"prompt": "b", "max_tokens": 2})
        await asyncio.gather(stream.rest(), new.rest())
        assert (stream.text(), stream.frames[-1][1]["version"]) == (counted(50), "v1-fp32")
        assert (new.text(), new.frames[-1][1]["version"]) == (counted(2), "v2-fp32")
        assert await asyncio.to_thread(loader.gave_back.wait, 10)
        assert old.closed


async def nobody_serves(nc) -> None:
    """Return once no worker takes requests any more."""
    with contextlib.suppress(nats.errors.NoRespondersError):
        while True:
            await nc.request(names.GENERATE, b"", timeout=20)


async def loaded(loader: FakeLoader, times: int) -> None:
    """Return once a model has begun to load so many times."""
    while loader.loads["tiny_coder"] < times:
        loader.entered.clear()
        assert await asyncio.to_thread(loader.entered.wait, 10)
