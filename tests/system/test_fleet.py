"""Load, overload, drain, death and restart: nothing admitted is lost, nobody waits for ever."""

import asyncio
import signal
import threading
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgpack
import nats
import pytest
from fake_encoder import FakeEncoder
from serve_fake import fake_process
from workers import running_worker

from subjects import MLClient, names
from subjects.errors import Busy, DeadlinePassed, MLError, Unavailable


class SlowEncoder(FakeEncoder):
    """Each pass takes 50 ms, whatever its size."""

    def encode(self, batch, between_layers=None):
        threading.Event().wait(0.05)
        return super().encode(batch, between_layers)


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
    ml._transport.retries = 0
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
    ml._transport.retries = 0
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
        ml._transport.retries = 50
        replies = await asyncio.gather(*(ml.embed(f"text {n}") for n in range(24)))
    assert len(replies) == 24


class Load:
    """32 callers, each with a request under way at all times. lost: the errors that they met."""

    def __init__(self, ml: MLClient) -> None:
        self.lost: list[MLError] = []
        self._ml = ml
        self._answered = asyncio.Semaphore(0)
        self._stopped = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Leaving waits for the last answers."""
        async with asyncio.TaskGroup() as callers:
            for name in range(32):
                callers.create_task(self._caller(name))
            try:
                yield
            finally:
                self._stopped = True

    async def answers(self, count: int) -> None:
        """Wait until so many more have come, from now on."""
        self._answered = asyncio.Semaphore(0)
        for _ in range(count):
            await self._answered.acquire()

    async def _caller(self, name: int) -> None:
        while not self._stopped:
            try:
                await self._ml.embed(f"caller {name}", timeout_s=10)
            except MLError as error:
                self.lost.append(error)
            self._answered.release()


@pytest.mark.slow
async def test_thirty_drains_under_load_lose_nothing(nats_url, ml):
    ml._transport.retries = 0
    load = Load(ml)
    async with running_worker(nats_url), load.running():
        for _ in range(30):
            async with running_worker(nats_url):
                await load.answers(100)
    assert not load.lost


@pytest.mark.slow
async def test_processes_drained_by_sigterm_under_load_lose_nothing(nats_url, ml):
    ml._transport.retries = 0
    load = Load(ml)
    async with running_worker(nats_url), load.running():
        for _ in range(3):
            process = await fake_process(nats_url)
            await load.answers(200)
            workers = await ml.discover("STATS", wait_s=1)
            assert len(workers) == 2
            assert all(worker["endpoints"][0]["num_requests"] for worker in workers)
            process.terminate()
            assert await asyncio.wait_for(process.wait(), 20) == 0
    assert not load.lost


async def test_what_the_grace_time_leaves_is_answered_503(nats_url, ml):
    ml._transport.retries = 0
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with running_worker(nats_url, encoder, grace_s=0.1):
        asked = [asyncio.create_task(ml.embed(f"text {n}")) for n in range(5)]
        assert await asyncio.to_thread(encoder.entered.wait, 10)
        asyncio.get_running_loop().call_later(0.5, encoder.gate.set)
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    assert all("shutting down" in str(result) for result in results)


async def test_a_killed_worker_leaves_its_callers_an_end_and_the_other_worker_goes_on(nats_url, ml):
    ml._transport.retries = 0
    doomed = await fake_process(nats_url, "--held")
    asked = [asyncio.create_task(ml.embed(f"held {n}", timeout_s=6)) for n in range(50)]
    async with asyncio.timeout(5):
        while await in_flight(ml) < len(asked):
            pass
    async with running_worker(nats_url):
        assert not any(task.done() for task in asked)
        doomed.send_signal(signal.SIGKILL)
        await doomed.wait()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert Counter(type(result) for result in results) == {DeadlinePassed: len(asked)}
        after = await asyncio.gather(*(ml.embed(f"after {n}") for n in range(50)))
    assert [reply.usage.tokens for reply in after] == [2] * 50


async def in_flight(ml: MLClient) -> int:
    """Requests that the workers hold."""
    workers = await ml.discover("STATS", wait_s=0.1)
    return sum(worker["endpoints"][0]["data"]["in_flight"] for worker in workers)


async def test_sigterm_ends_a_worker_with_code_0_and_a_lost_server_does_not_end_it(nats_server):
    process = await fake_process(nats_server.url)
    await asyncio.to_thread(nats_server.restart)
    async with await MLClient.connect(nats_server.url, timeout_s=30) as ml:
        ml._transport.retries = 100
        assert (await ml.embed("back again")).usage.tokens == 2
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 20) == 0


async def test_a_load_that_does_not_end_holds_up_no_shutdown(nats_url, ml):
    ml._transport.retries = 0
    process = await fake_process(nats_url, "--loading", MLBUS_GRACE_S="0.2")
    waiting = asyncio.create_task(ml.embed("x", model="a"))
    async with asyncio.timeout(5):
        while await in_flight(ml) < 1:
            pass
    process.terminate()
    with pytest.raises(Unavailable, match="shutting down"):
        await waiting
    assert await asyncio.wait_for(process.wait(), 10) == 0


async def test_after_a_restart_of_the_server_the_worker_answers_again(nats_server, ml):
    async with running_worker(nats_server.url):
        await ml.embed("before")
        await asyncio.to_thread(nats_server.restart)
        ml._transport.retries = 100
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


async def test_a_busy_thread_holds_up_no_shutdown(nats_url, ml):
    """What computes, or steps, cannot be interrupted: the callers are answered, and the process ends all the same."""
    ml._transport.retries = 0
    process = await fake_process(nats_url, "--held", MLBUS_GRACE_S="0.2")
    asked = [asyncio.create_task(ml.embed("x")), asyncio.create_task(ml.generate("x"))]
    async with asyncio.timeout(10):
        while await in_flight(ml) < len(asked):
            pass
    process.terminate()
    assert [type(end) for end in await asyncio.gather(*asked, return_exceptions=True)] == [Unavailable] * 2
    assert await asyncio.wait_for(process.wait(), 20) == 0


@pytest.mark.parametrize("ask", [MLClient.embed, MLClient.generate], ids=["vectors", "text"])
async def test_a_worker_whose_device_fails_for_good_leaves_and_ends(nats_url, ml, ask):
    """Its callers may ask another; a failure after which the device works ends nothing."""
    ml._transport.retries = 0
    process = await fake_process(nats_url, stderr=PIPE)
    with pytest.raises(MLError):
        await ask(ml, "poison")
    with pytest.raises(Unavailable) as refused:
        await ask(ml, "unplugged")
    assert refused.value.retryable
    _, logged = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert b"device 'cuda' has failed for good: CUDA error: device-side assert triggered; start the" in logged
    with pytest.raises(Unavailable, match="no worker"):
        await ask(ml, "after")


@pytest.mark.parametrize("hangs", ["drain", "loop", "pattern"])
async def test_a_stop_that_does_not_get_through_is_cut_off_and_says_where_it_hangs(nats_server, hangs):
    """Whatever hangs: a hand-back to a server that is away, or the event loop itself, which hears of no signal then."""
    process = await fake_process(nats_server.url, "--hangs", hangs, stderr=PIPE, MLBUS_GRACE_S="0")
    process.terminate()
    _, logged = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert b"most recent call first" in logged  # where each thread was


@pytest.mark.parametrize("hangs", ["task", "thread"])
async def test_what_cannot_be_cancelled_does_not_hold_up_a_stop(nats_server, hangs):
    process = await fake_process(nats_server.url, "--hangs", hangs, stderr=PIPE, MLBUS_GRACE_S="0")
    process.terminate()
    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode in (0, 1)


async def test_a_second_signal_ends_a_worker_whose_loop_hangs(nats_server):
    process = await fake_process(nats_server.url, "--hangs", "loop", stderr=PIPE)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 130


async def test_a_worker_that_does_not_hear_itself_leaves(nats_server):
    """Its client sends nothing any more; the server sees a connection that is in good order."""
    process = await fake_process(nats_server.url, "--mute", stderr=PIPE, MLBUS_GRACE_S="0")
    _, logged = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 1
    assert b"3 times in a row, and nobody answered" in logged
