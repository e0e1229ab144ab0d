"""Callers who leave, read slowly or have no time: the work ends at the worker, and memory stays bounded."""

import asyncio
import json
import socket
from dataclasses import replace

import pytest
from fake_encoder import FakeEncoder
from fake_engine import FakeEngine
from gateways import Answer, Gateway, ask, connection, post, request, running_gateway
from process_memory import resident_kb
from workers import running_worker

STREAMS, STREAMS_KB = 200, 32 * 1024
"""Streams at once, and what the gateway may need for all of them."""
ALL_THE_TIME_MS = "900000"
pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "a"}], "max_tokens": 400}
PATHS = {
    "/ml/generate": {"prompt": "a", "model": "smollm2", "max_tokens": 400},
    "/v1/completions": {"prompt": "a", "model": "smollm2", "max_tokens": 400},
    "/v1/chat/completions": CHAT,
}


def text_of(stream: Answer) -> str:
    return "".join(data["text"] for name, _, data in stream.events if name == "token")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "reply"])
async def test_a_closed_connection_ends_the_work(setup, gateway: Gateway, path: str, stream: bool) -> None:
    engine = setup.chat
    engine.aborted.clear()
    engine.entered.clear()
    engine.slow(0.005)
    try:
        async with connection(gateway) as caller:
            await caller.send(request("POST", path, json.dumps({**PATHS[path], "stream": stream}).encode()))
            if stream:
                await caller.head()
                await caller.chunk()
            else:
                assert await asyncio.to_thread(engine.entered.wait, 10)
        assert await asyncio.to_thread(engine.aborted.wait, 10)
    finally:
        engine.release()
    assert (await post(gateway, path, {**PATHS[path], "max_tokens": 1})).status == 200


async def test_a_caller_who_leaves_while_vectors_are_computed(setup, gateway: Gateway) -> None:
    setup.encoder.gate.clear()
    texts = [f"text {number}" for number in range(2000)]
    try:
        async with connection(gateway) as caller:
            await caller.send(request("POST", "/v1/embeddings", json.dumps({"input": texts}).encode()))
            assert await asyncio.to_thread(setup.encoder.entered.wait, 10)
        given_up = b'mlbus_http_answers_total{path="/v1/embeddings",status="499"}'
        async with asyncio.timeout(30):
            while given_up not in (await ask(gateway, "GET", "/metrics")).body:
                pass
        assert (await post(gateway, "/ml/models/list", {})).status == 200  # which reaches the worker after the cancel
    finally:
        setup.encoder.gate.set()
    assert (await post(gateway, "/ml/embed", {"text": "after"})).status == 200
    assert len(setup.encoder.seen) < len(texts)


async def test_the_deadline_goes_through(setup, gateway: Gateway) -> None:
    setup.chat.gate.clear()
    try:
        for path, fields in PATHS.items():
            answer = await post(gateway, path, fields, ml_timeout_ms="200")
            assert answer.status == 408, path
        assert (await post(gateway, "/v1/completions", PATHS["/v1/completions"], ml_timeout_ms="x")).status == 400
    finally:
        setup.chat.gate.set()


async def test_a_reader_who_does_not_read_is_cut_off(setup) -> None:
    """The answer is larger than what systems keep for a connection, and others are served meanwhile."""
    texts = [f"text {number}" for number in range(65_000)]
    body = json.dumps({"texts": texts, "stream": True}).encode()
    async with running_gateway(setup.server.url, MLBUS_HTTP__WRITE_TIMEOUT_S="0.5") as gateway:
        with socket.socket() as stalled:
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stalled.connect(gateway.address)
            await asyncio.to_thread(stalled.sendall, request("POST", "/ml/embed/batch", body))
            assert (await post(gateway, "/ml/embed", {"text": "meanwhile"})).status == 200
            async with asyncio.timeout(30):
                while b'answers_total{path="/ml/embed/batch"' not in (await ask(gateway, "GET", "/metrics")).body:
                    pass


async def test_hundreds_of_streams_at_once_are_all_whole(setup, gateway: Gateway) -> None:
    """With all the time there is: within a minute a worker that other tests have held up refuses some, rightly."""
    fields = {"prompt": "a", "model": "smollm2", "max_tokens": 5, "stream": True}
    before_kb = resident_kb(gateway.process)
    answers = await asyncio.gather(
        *(post(gateway, "/ml/generate", fields, ml_timeout_ms=ALL_THE_TIME_MS) for _ in range(STREAMS))
    )
    assert {(answer.status, text_of(answer)) for answer in answers} == {(200, " 0 1 2 3 4")}
    assert resident_kb(gateway.process, "VmHWM") - before_kb < STREAMS_KB


@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_is_refused_has_the_status_for_it(setup, gateway: Gateway, path: str) -> None:
    """Not 200 and an event for the error: clients ask again by the status."""
    limits = setup.chat.limits
    setup.chat.limits = replace(limits, waiting=0)
    try:
        answer = await post(gateway, path, {**PATHS[path], "stream": True})
    finally:
        setup.chat.limits = limits
    assert (answer.status, answer.headers["content-type"]) == (429, "application/json")
    assert int(answer.headers["retry-after-ms"]) > 0


async def test_nats_that_goes_away_within_a_stream(nats_server) -> None:
    """The stream goes on after it is back, and what is asked meanwhile is told why it cannot be answered."""
    engine = FakeEngine()
    engine.hold_after(1)
    async with (
        running_worker(nats_server.url, FakeEncoder(), engine),
        running_gateway(nats_server.url) as gateway,
        connection(gateway) as caller,
    ):
        await caller.send(request("POST", "/ml/generate", b'{"prompt":"a","max_tokens":4,"stream":true}'))
        await caller.head()
        first = await caller.chunk()
        nats_server.stop()
        await gateway.until("bus.disconnected")
        assert (await post(gateway, "/ml/embed", {"text": "a"})).status == 503
        nats_server.start()
        await gateway.until("bus.reconnected")
        engine.release()
        rest = b""
        while chunk := await caller.chunk():
            rest += chunk
    assert b'"text":" 0"' in first
    assert b"event: done" in rest
