"""Somebody who has found a caller's inbox can neither answer in a worker's place nor end what it asked for.

On a plain server, where everybody may publish everywhere and the attacker sees every subject and no header.
"""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from nats.aio.client import Client
from nats.aio.msg import Msg
from scripted_worker import DONE, SERVED, Worker, frames, reply, scripted_worker, tokens
from workers import running_worker

from service.bus.connection import settled
from subjects import GenerateDone, MLClient, TokenFrame, codec, names, stream
from subjects.client.inbox import inbox
from subjects.errors import Internal, MLError

FAKE = {**DONE, "text": "forged"}
OTHERS = "0" * 32


@pytest.fixture
async def worker(nats_url: str) -> AsyncIterator[Worker]:
    async with scripted_worker(nats_url) as worker:
        yield worker


def forgeries(event: str, seq: int, body: bytes) -> list[dict[str, str] | None]:
    """Headers of what the attacker sends: as a worker's, without the id or with another's, and of a refusal."""
    framed = stream.frame_headers(event, seq)
    refused = Internal("forged").headers()
    return [None, {}, framed, framed | {names.REQUEST_ID: OTHERS}, refused, refused | {names.REQUEST_ID: OTHERS}]


async def flood(attacker: Client, to: str, event: str, seq: int, fields: dict[str, Any]) -> None:
    body = codec.dumps({**fields, "seq": seq}, names.MSGPACK)
    for headers in forgeries(event, seq, body):
        await attacker.publish(to, body, headers=headers)
    await attacker.publish(to, stream.SENTINEL)
    await attacker.flush()


async def test_fake_frames_are_not_taken_for_the_answer(worker: Worker, nc: Client, attacker: Client) -> None:
    async def attacked(worker: Worker, msg: Msg) -> None:
        await flood(attacker, msg.reply, stream.TOKEN, 0, {"text": "forged"})
        await frames(*tokens("a"), sentinel=False)(worker, msg)
        await worker.nc.flush()
        await attacker.publish(msg.reply, b"", headers={"Status": "503"})  # too late to be the server's word
        await flood(attacker, msg.reply, stream.DONE, 1, FAKE)
        await frames((stream.DONE, 1, DONE))(worker, msg)

    worker.scripts = [attacked]
    got = [frame async for frame in MLClient(nc, timeout_s=20).stream("x")]
    assert [frame.text for frame in got if isinstance(frame, TokenFrame)] == ["a"]
    assert isinstance(got[-1], GenerateDone)
    assert got[-1].model == SERVED["model"]


async def test_a_fake_reply_is_not_taken_for_the_answer(worker: Worker, nc: Client, attacker: Client) -> None:
    async def attacked(worker: Worker, msg: Msg) -> None:
        await flood(attacker, msg.reply, stream.DONE, 0, FAKE)
        await reply({**DONE, "text": "ours"})(worker, msg)

    worker.scripts = [attacked]
    assert (await MLClient(nc, timeout_s=20).generate("x")).text == "ours"


async def test_a_fake_reply_of_one_worker_among_many_is_not_counted(
    worker: Worker, nc: Client, attacker: Client
) -> None:
    async def attacked(msg: Msg) -> None:
        changed = {"model": "a", "worker": "w", "models": [], "memory": {"budget_bytes": 1, "used_bytes": 0}}
        await flood(attacker, msg.reply, stream.DONE, 0, changed)
        error = Internal("ours")
        headers = error.headers() | {names.REQUEST_ID: msg.headers[names.REQUEST_ID], names.WORKER: "w"}
        await worker.nc.publish(msg.reply, codec.dumps_error(error, "", names.MSGPACK), headers=headers)

    await worker.nc.subscribe(names.MODELS_RELOAD, cb=attacked)
    await settled(worker.nc)
    (answer,) = await MLClient(nc, timeout_s=20).models.reload_all("a", 1)
    assert isinstance(answer, MLError)
    assert str(answer) == "ours"


async def test_one_inbox_of_a_connection_does_not_tell_those_of_its_clients(nc: Client, worker: Worker) -> None:
    """nats-py counts from one inbox to the next; what MLClient makes it draws, below the connection's own prefix."""
    worker.scripts = [reply({**DONE, "text": "x"}), frames((stream.DONE, 0, DONE))] * 2
    for ml in (MLClient(nc), MLClient(nc)):
        await ml.generate("x")
        assert [frame async for frame in ml.stream("x")]
    inboxes = [subject for msg in worker.requests for subject in (msg.reply, msg.headers[names.CALLER])]
    randoms = {inbox.split(".")[1] for inbox in inboxes}
    assert {inbox.split(".")[0] for inbox in inboxes} == {"_INBOX"}
    assert len({random[:16] for random in randoms}) == len(randoms) == 4
    assert nc.new_inbox().split(".")[1][:12] not in {random[:12] for random in randoms}


async def test_who_does_not_know_the_id_cancels_nothing(nats_url: str, nc: Client, attacker: Client) -> None:
    engine = FakeEngine()
    engine.hold_after(1)
    async with running_worker(nats_url, FakeEncoder(), engine):
        pieces = MLClient(nc, timeout_s=20).stream("a", max_tokens=3)
        assert isinstance(await anext(pieces), TokenFrame)
        for guess in ("*", ">", OTHERS):
            await attacker.publish(f"{names.CANCEL}.{guess}")
        await attacker.flush()
        engine.release()
        *_, done = [frame async for frame in pieces]
        assert isinstance(done, GenerateDone)
        assert done.finish_reason == "length"


async def test_nobody_guesses_where_it_is_said_that_a_caller_has_gone(
    nats_url: str, nc: Client, attacker: Client
) -> None:
    engine = FakeEngine()
    engine.hold_after(1)
    async with running_worker(nats_url, FakeEncoder(), engine), inbox(attacker) as (caller, probes):
        pieces = MLClient(nc, timeout_s=20).stream("a", max_tokens=3)
        assert isinstance(await anext(pieces), TokenFrame)
        await attacker.publish(names.GENERATE, b"a", attacker.new_inbox(), {names.CALLER: caller})
        own = (await probes.next_msg(timeout=20)).reply
        for guess in range(20):
            await attacker.publish(f"{own.rpartition('.')[0]}.{guess}", b"", headers={"Status": "503"})
        await attacker.request(names.SCHEMA, names.EMBED.encode(), timeout=20)  # the worker has heard all of them
        engine.release()
        *_, done = [frame async for frame in pieces]
        assert isinstance(done, GenerateDone)
        assert done.finish_reason == "length"


ASKED = [
    (names.EMBED, b"hello", {}),
    (names.EMBED, b"", {}),
    (names.EMBED, b'{"texd": "x"}', {}),
    (names.EMBED, b"\xff", {names.CONTENT_TYPE: "image/png"}),
    (names.EMBED, b"x", {names.TIMEOUT_MS: "soon"}),
    (names.EMBED, b"x", {names.TIMEOUT_MS: "0"}),
    (names.EMBED, b"x", {names.STREAM: "true"}),
    (names.EMBED, b"x", {names.CALLER: "$JS.x"}),
    (names.EMBED, b"x", {"X-Padding": "x" * 20_000}),
    (names.EMBED_BATCH, b'{"texts": ["a", "b"]}', {names.STREAM: "true"}),
    (names.GENERATE, b"a", {names.STREAM: "true"}),
    (names.GENERATE, b"a", {names.ACCEPT: names.TEXT, names.STREAM: "true"}),
    (names.GENERATE, b"poison", {names.STREAM: "true"}),
    (names.GENERATE, b'{"prompt": "a", "model": "nope"}', {}),
    (names.MODELS_LIST, b"", {}),
    (names.JOBS_GET, b"nope", {}),
]


async def test_every_reply_and_frame_carries_the_id_that_was_sent(nats_url: str, nc: Client) -> None:
    async with running_worker(nats_url, FakeEncoder(), FakeEngine()):
        for number, (subject, body, headers) in enumerate(ASKED):
            request_id = f"request-{number}"
            async with inbox(nc) as (to, messages):
                await nc.publish(subject, body, to, {names.REQUEST_ID: request_id, **headers})
                answers = [await messages.next_msg(timeout=20)]
                while names.STREAM in headers and answers[-1].data:
                    answers.append(await messages.next_msg(timeout=20))
                told = [(message.headers or {}).get(names.REQUEST_ID) for message in answers if message.data]
                assert told == [request_id] * len(told), (subject, body, headers)
                assert told
