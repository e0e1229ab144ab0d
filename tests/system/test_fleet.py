"""Load, overload, drain, death and restart: nothing admitted is lost, nobody waits for ever."""

import asyncio
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import msgpack
import nats
import pytest
from fake_encoder import FakeEncoder
from workers import clean_environment, running_worker

from subjects import MLClient, names
from subjects.errors import Busy, DeadlinePassed, MLError, Unavailable

SERVE_FAKE = Path(__file__).parent.parent / "serve_fake.py"


class SlowEncoder(FakeEncoder):
    """Each pass takes 50 ms, whatever its size."""

    def encode(self, batch):
        threading.Event().wait(0.05)
        return super().encode(batch)


@pytest.fixture
async def ml(nats_url):
    async with await MLClient.connect(nats_url) as client:
        yield client


async def test_requests_run_together_not_one_after_another(nats_url, ml):
    encoder = SlowEncoder()
    async with running_worker(nats_url, encoder):
        await asyncio.gather(*(ml.embed(f"text {n}") for n in range(10)))
    assert len(encoder.batches) <= 3


async def test_batches_form_under_load(nats_url, ml):
    encoder = SlowEncoder()

    async def caller(name: int) -> None:
        for n in range(8):
            await ml.embed(f"caller {name} text {n}")

    async with running_worker(nats_url, encoder):
        await asyncio.gather(*(caller(name) for name in range(64)))
    assert sum(map(len, encoder.batches)) == 64 * 8
    assert 64 * 8 / len(encoder.batches) > 4


async def test_overload_is_refused_at_once_and_the_admitted_finish(nats_url, ml):
    ml._retries = 0
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with running_worker(nats_url, encoder, limits={"requests": 20}):
        asked = [asyncio.create_task(ml.embed(f"text {n}")) for n in range(50)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION, timeout=10)
        while len(done) < 30:
            more, _ = await asyncio.wait(set(asked) - done, return_when=asyncio.FIRST_COMPLETED, timeout=10)
            done |= more
        refusals = [task.exception() for task in done]
        assert all(isinstance(error, Busy) and error.retry_after_ms for error in refusals)
        encoder.gate.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert Counter(type(result).__name__ for result in results) == {"EmbedReply": 20, "Busy": 30}


async def test_bytes_in_flight_are_bounded(nats_url, ml):
    ml._retries = 0
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with running_worker(nats_url, encoder, limits={"request_bytes": 100_000}):
        asked = [asyncio.create_task(ml.embed("word " * 8000)) for _ in range(4)]
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert all(isinstance(task.exception(), Busy) for task in done)
        encoder.gate.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
    assert Counter(type(result).__name__ for result in results) == {"EmbedReply": 2, "Busy": 2}


async def test_a_client_that_is_refused_comes_back(nats_url, ml):
    async with running_worker(nats_url, SlowEncoder(), limits={"requests": 4}):
        ml._retries = 50
        replies = await asyncio.gather(*(ml.embed(f"text {n}") for n in range(24)))
    assert len(replies) == 24


async def test_thirty_drains_under_load_lose_nothing(nats_url, ml):
    ml._retries = 0
    lost: list[BaseException] = []
    answered = asyncio.Semaphore(0)
    stop = asyncio.Event()

    async def caller(name: int) -> None:
        while not stop.is_set():
            try:
                await ml.embed(f"caller {name}", timeout_s=10)
            except MLError as error:
                lost.append(error)
            answered.release()

    async with running_worker(nats_url):
        callers = [asyncio.create_task(caller(name)) for name in range(32)]
        for _ in range(30):
            async with running_worker(nats_url):
                for _ in range(100):
                    await answered.acquire()
        stop.set()
        await asyncio.gather(*callers)
    assert not lost


async def test_what_the_grace_time_leaves_is_answered_503(nats_url, ml):
    ml._retries = 0
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with running_worker(nats_url, encoder, grace_s=0.1):
        asked = [asyncio.create_task(ml.embed(f"text {n}")) for n in range(5)]
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        asyncio.get_running_loop().call_later(0.5, encoder.gate.set)
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    assert all("shutting down" in str(result) for result in results)


async def fake_process(url: str) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(SERVE_FAKE), url, env=clean_environment(), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await asyncio.wait_for(process.stdout.readline(), 30) == b"ready\n"
    return process


async def test_a_killed_worker_leaves_its_callers_an_end_and_the_other_worker_goes_on(nats_url, ml):
    ml._retries = 0
    doomed = await fake_process(nats_url)
    async with running_worker(nats_url):
        asked = [asyncio.create_task(ml.embed(f"text {n}", timeout_s=3)) for n in range(200)]
        doomed.send_signal(signal.SIGKILL)
        await doomed.wait()
        results = await asyncio.gather(*asked, return_exceptions=True)
        kinds = Counter(type(result) for result in results)
        assert set(kinds) <= {type(await ml.embed("x")), DeadlinePassed}
        for n in range(20):
            assert (await ml.embed(f"after {n}")).usage.tokens == 2


async def test_sigterm_ends_a_worker_with_code_0_and_a_lost_server_does_not_end_it(nats_server):
    process = await fake_process(nats_server.url)
    await asyncio.to_thread(nats_server.restart)
    async with await MLClient.connect(nats_server.url, timeout_s=30) as ml:
        ml._retries = 100
        assert (await ml.embed("back again")).usage.tokens == 2
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_after_a_restart_of_the_server_the_worker_answers_again(nats_server, ml):
    async with running_worker(nats_server.url):
        await ml.embed("before")
        await asyncio.to_thread(nats_server.restart)
        ml._retries = 100
        started = time.monotonic()
        assert (await ml.embed("after", timeout_s=30)).usage.tokens == 1
        assert time.monotonic() - started < 20


async def test_a_reply_that_cannot_fit_is_refused_before_any_work(nats_server):
    encoder = FakeEncoder()
    async with running_worker(nats_server.url, encoder):
        nc = await nats.connect(nats_server.url)
        texts = ["t"] * 8000
        body = msgpack.packb({"texts": texts, "normalize": True})
        reply = await nc.request(names.EMBED_BATCH, body, timeout=20, headers={"Accept": "application/json"})
        assert reply.headers[names.ERROR_CODE] == "413"
        assert b"Ml-Stream" in reply.data
        assert not encoder.batches
        await nc.close()
