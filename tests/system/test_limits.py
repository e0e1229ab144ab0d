"""Messages as large and as hostile as the shipped server lets through: refused with a code, in bounded memory."""

import asyncio
import os
import signal

import msgpack
import nats
import numpy as np
import orjson
import pytest
from fake_encoder import FakeEncoder
from nats_server import PASSWORDS
from process_memory import resident_kb
from serve_fake import fake_process
from workers import running_worker

from service.endpoint.call import MAX_KEPT_BYTES, MAX_UNSENT_BYTES, Call
from subjects import MLClient, names
from subjects.embed import MAX_TEXTS, EmbedDone
from subjects.errors import TooLarge

SIZE = 7_900_000
HEADROOM_KB = 400 * 1024
AS_WORKER = {"NATS_USER": "worker", "NATS_PASSWORD": PASSWORDS["worker"], "NATS_INBOX_PREFIX": "_INBOX_worker"}


@pytest.fixture
async def worker(secured_server):
    """A worker process beside the shipped server."""
    process = await fake_process(secured_server.url, **AS_WORKER)
    yield process
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.fixture
async def ml(worker, secured_server):
    async with await MLClient.connect(secured_server.url) as client:
        yield client


async def test_a_text_that_the_server_lets_through_is_refused_with_the_limit(ml):
    message = await ml._nc.request(names.EMBED, b"x" * SIZE, timeout=30, headers={names.CONTENT_TYPE: names.TEXT})
    assert message.headers[names.ERROR_CODE] == "413"
    assert b"1000000" in message.data


async def test_a_request_over_the_servers_limit_is_not_sent(ml):
    before = ml._nc.stats["out_bytes"]
    with pytest.raises(TooLarge):
        await ml.embed("x" * (9 * 2**20))
    with pytest.raises(TooLarge, match=str(8 * 2**20)):
        await ml.embed_batch(["x" * 1_000_000] * 9)
    assert ml._nc.stats["out_bytes"] == before
    assert (await ml.embed("still connected")).usage.tokens == 2


def many_keys() -> bytes:
    """A MessagePack map with a million unknown keys."""
    pairs = b"".join(b"\xa6%06x\xc0" % key for key in range(SIZE // 8))
    return b"\xdf" + (SIZE // 8).to_bytes(4) + pairs


def nested_arrays() -> bytes:
    """MessagePack arrays of empty arrays."""
    wide = SIZE - 20
    return msgpack.packb({"text": 0})[:-1] + b"\xdd" + wide.to_bytes(4) + b"\x90" * wide


def nested_lists() -> bytes:
    return b'{"texts": [' + b"[]," * (SIZE // 3) + b"[]]}"


def deep_lists() -> bytes:
    return b'{"texts": ' + b"[" * (SIZE // 2) + b"]" * (SIZE // 2) + b"}"


def many_texts() -> bytes:
    return orjson.dumps({"texts": ["a text"] * 100_000})


HOSTILE = {
    many_keys: names.MSGPACK,
    nested_arrays: names.MSGPACK,
    nested_lists: names.JSON,
    deep_lists: names.JSON,
    many_texts: names.JSON,
}


@pytest.mark.slow
async def test_hostile_messages_are_refused_in_bounded_memory_while_others_are_served(worker, ml, secured_server):
    before = resident_kb(worker)
    async with await nats.connect(secured_server.url) as hostile:
        for make, kind in HOSTILE.items():
            body = make()
            assert len(body) <= 8 * 2**20
            for subject in (names.EMBED, names.EMBED_BATCH, names.SIMILARITY):
                asked = hostile.request(subject, body, timeout=30, headers={names.CONTENT_TYPE: kind})
                refused, served = await asyncio.gather(asked, ml.embed("beside it"))
                assert refused.headers[names.ERROR_CODE] in ("400", "413", "422"), make.__name__
                assert served.usage.tokens == 2
            assert resident_kb(worker, "VmHWM") - before < HEADROOM_KB, make.__name__


class WideEncoder(FakeEncoder):
    """Vectors of 16 KiB, at once."""

    dimensions = 4096

    def encode(self, batch, between_layers=None):
        self.batches.append([len(tokens) for tokens in batch])
        return np.ones((len(batch), self.dimensions), np.float32)


async def test_a_server_that_does_not_read_stops_the_stream_and_fills_no_memory(nats_server, monkeypatch):
    texts = [f"text {i}" for i in range(3000)]
    encoder, waiting = WideEncoder(), asyncio.Event()
    held = []
    wait_for_space = Call._wait_for_space

    async def noted(self):
        held.append(self.nc.kept_bytes)
        if held[-1] > MAX_KEPT_BYTES or self.nc.pending_data_size > MAX_UNSENT_BYTES:
            waiting.set()
        await wait_for_space(self)

    monkeypatch.setattr(Call, "_wait_for_space", noted)
    async with running_worker(nats_server.url, encoder), await nats.connect(nats_server.url) as nc:
        inbox = nc.new_inbox()
        frames = await nc.subscribe(inbox)
        await nc.publish(names.EMBED_BATCH, msgpack.packb({"texts": texts}), inbox, {names.STREAM: "true"})
        await frames.next_msg(timeout=20)
        os.kill(nats_server._process.pid, signal.SIGSTOP)
        try:
            await asyncio.wait_for(waiting.wait(), 20)
            assert sum(map(len, encoder.batches)) < len(texts)
            assert max(held) < MAX_KEPT_BYTES + 2 * nc.max_payload
        finally:
            os.kill(nats_server._process.pid, signal.SIGCONT)
        while (message := await frames.next_msg(timeout=20)).data:
            last = message
        assert msgpack.unpackb(last.data)["count"] == len(texts)
        assert max(held) < MAX_KEPT_BYTES + 2 * nc.max_payload


async def test_the_largest_batch_is_streamed_in_little_memory(worker, ml):
    texts = [f"text {i} {'x' * 100}" for i in range(MAX_TEXTS)]
    before = resident_kb(worker)
    count = 0
    async for frame in ml.embed_stream(texts, timeout_s=100):
        count += 0 if isinstance(frame, EmbedDone) else len(frame.embeddings)
    assert count == MAX_TEXTS
    assert resident_kb(worker, "VmHWM") - before < 5 * SIZE / 1024
