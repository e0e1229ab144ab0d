"""`MLClient`'s completions against a worker that answers as it is told: order, loss, early ends, retries."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from nats.aio.msg import Msg
from scripted_worker import DONE, END, SERVED, Worker, failing, frames, refusal, reply, scripted_worker, silent, tokens

from subjects import ChatMessage, GenerateDone, MLClient, TokenFrame, names, stream
from subjects.errors import Busy, DeadlinePassed, Internal, InvalidField, TooLarge, Unavailable


@pytest.fixture
async def worker(nats_url) -> AsyncIterator[Worker]:
    async with scripted_worker(nats_url) as worker:
        yield worker


async def none_cancelled(worker: Worker, ml: MLClient) -> None:
    """Cancels come in the order in which they were sent, and the first one is ours."""
    await ml.cancel("the-first")
    assert await worker.next_cancel() == "the-first"


async def read(pieces: AsyncIterator[TokenFrame | GenerateDone], into: list[str] | None = None) -> None:
    """All of a stream, as far as it comes."""
    async for frame in pieces:
        if into is not None and isinstance(frame, TokenFrame):
            into.append(frame.text)


async def test_a_text_comes_back_whole(worker, ml):
    worker.scripts = [reply({**DONE, "text": "é", "stop_reason": "\n"})]
    got = await ml.generate("def f", max_tokens=5, stop="\n", logit_bias={5: -1.5}, seed=2**64 - 1)
    assert (got.text, got.finish_reason, got.stop_reason, got.seed) == ("é", "stop", "\n", 7)
    assert (got.usage.prompt_tokens, got.usage.cached_tokens, got.usage.completion_tokens) == (3, 0, 2)
    assert worker.fields() == {
        "prompt": "def f",
        "max_tokens": 5,
        "stop": ["\n"],
        "logit_bias": {5: -1.5},
        "seed": 2**64 - 1,
    }
    assert names.STREAM not in worker.requests[0].headers


async def test_a_chat_and_a_gap_are_asked_for(worker, ml):
    worker.scripts = [reply({**DONE, "text": "x"})]
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    await ml.generate(messages=[ChatMessage(**turns[0]), turns[1]])
    await ml.generate(prefix="a", suffix="")
    assert [worker.fields(0), worker.fields(1)] == [{"messages": turns}, {"prefix": "a", "suffix": ""}]


async def test_a_batch_tells_of_each_prompt(worker, ml):
    ended = {**END, "usage": SERVED["usage"]}
    failed = {**ended, "finish_reason": "error", "text": "", "error": {"code": 413, "message": "too long"}}
    worker.scripts = [reply({**SERVED, "results": [{**ended, "text": "a"}, failed]})]
    got = await ml.generate_batch(("x", "y"), temperature=0)
    assert [result.text for result in got.results] == ["a", ""]
    assert [result.error and result.error.code for result in got.results] == [None, 413]
    assert worker.fields() == {"prompts": ["x", "y"], "temperature": 0.0}


async def test_what_is_wrong_is_refused_here(worker, ml):
    for form in ({}, {"prompt": "x", "suffix": "y"}, {"prompt": ""}, {"prompt": "x", "temperature": float("nan")}):
        with pytest.raises(InvalidField):
            await ml.generate(**form)
    assert worker.requests == []


async def test_pieces_come_in_order_and_the_end_last(worker, ml):
    worker.scripts = [frames(*tokens("def", " f"), (stream.DONE, 2, DONE))]
    got = [frame async for frame in ml.stream("x")]
    assert [frame.text for frame in got[:2]] == ["def", " f"]
    assert [type(frame) for frame in got] == [TokenFrame, TokenFrame, GenerateDone]
    assert got[-1].usage.completion_tokens == 2
    assert worker.requests[0].headers[names.STREAM] == "true"
    await none_cancelled(worker, ml)


async def test_the_sentinel_and_pings_are_passed_over(worker, ml):
    ping = (stream.PING, 1, {})
    worker.scripts = [frames(*tokens("a"), ping, (stream.TOKEN, 2, {"text": "b"}), (stream.DONE, 3, DONE))]
    assert [frame.seq async for frame in ml.stream("x")] == [0, 2, 3]
    assert [frame.seq async for frame in ml.stream("x")] == [0, 2, 3]


@pytest.mark.parametrize("seqs", [(0, 2), (1,)], ids=["lost", "first lost"])
async def test_a_frame_lost_is_an_error_and_ends_the_work(worker, ml, seqs):
    worker.scripts = [frames(*((stream.TOKEN, seq, {"text": "a"}) for seq in seqs), sentinel=False)]
    with pytest.raises(Internal, match=f"got {seqs[-1]}"):
        await read(ml.stream("x"))
    assert await worker.next_cancel() == worker.id()


async def test_a_frame_that_comes_twice_counts_once(worker, ml):
    """A worker that was cut off sends again what it cannot know to have arrived."""
    doubled = [*tokens("a", "b"), *tokens("a", "b", "c"), (stream.DONE, 3, DONE)]
    worker.scripts = [frames(*doubled)]
    assert [frame.seq async for frame in ml.stream("x")] == [0, 1, 2, 3]


async def test_a_lost_end_is_an_error(worker, ml):
    """The sentinel says nothing: it has no headers, so anybody may have sent it."""
    worker.scripts = [frames(*tokens("a"))]
    with pytest.raises(DeadlinePassed, match="did not end in time"):
        await read(ml.stream("x", timeout_s=0.2))


async def test_a_stream_closed_early_is_cancelled_and_unsubscribed(worker, ml):
    worker.scripts = [frames(*tokens("a", "b"), sentinel=False)]
    async with aclosing(ml.stream("x")) as pieces:
        async for _ in pieces:
            break
    assert await worker.next_cancel() == worker.id()
    listeners = await worker.nc.subscribe(gone := worker.nc.new_inbox())
    await worker.nc.publish(worker.requests[0].reply, b"more", reply=gone)
    assert (await listeners.next_msg(timeout=10)).headers["Status"] == "503"


async def test_a_cancelled_caller_ends_the_work(worker, ml):
    heard = asyncio.Event()

    async def listen() -> None:
        async for _ in ml.stream("x"):
            heard.set()

    worker.scripts = [frames(*tokens("a"), sentinel=False)]
    task = asyncio.create_task(listen())
    await asyncio.wait_for(heard.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await worker.next_cancel() == worker.id()


async def test_a_time_out_ends_the_work(worker, ml):
    worker.scripts = [silent]
    with pytest.raises(DeadlinePassed):
        await ml.generate("x", timeout_s=0.2)
    assert await worker.next_cancel() == worker.id(0)
    worker.scripts = [frames(*tokens("a"), sentinel=False)]
    with pytest.raises(DeadlinePassed):
        await read(ml.stream("x", timeout_s=0.2))
    assert await worker.next_cancel() == worker.id(1)


async def test_the_worker_has_a_little_less_time_than_the_caller(worker, ml):
    worker.scripts = [reply({**DONE, "text": "x"})]
    await ml.generate("x", timeout_s=10)
    await ml.generate("x", timeout_s=1)
    told = [int(msg.headers[names.TIMEOUT_MS]) for msg in worker.requests]
    assert 9000 < told[0] <= 9750
    assert 500 < told[1] <= 950


async def test_an_error_frame_raises_and_cancels_nothing(worker, ml):
    worker.scripts = [failing(Internal("step failed"), *tokens("a"))]
    got = []
    with pytest.raises(Internal, match="step failed"):
        await read(ml.stream("x"), got)
    assert got == ["a"]
    await none_cancelled(worker, ml)


async def test_only_what_has_not_begun_is_tried_again(worker, ml):
    worker.scripts = [failing(Busy("full")), failing(Unavailable("shutting down"), *tokens("a"))]
    with pytest.raises(Unavailable, match="shutting down"):
        await read(ml.stream("x"))
    assert len(worker.requests) == 2
    assert worker.id(0) != worker.id(1)


async def test_one_reply_is_tried_again_where_it_may_help(worker, ml):
    worker.scripts = [refusal(Busy("full")), reply({**DONE, "text": "x"}), refusal(TooLarge("too long"))]
    assert (await ml.generate("x")).text == "x"
    with pytest.raises(TooLarge, match="too long"):
        await ml.generate("x")
    assert len(worker.requests) == 3


async def test_nobody_there_is_said(nc):
    ml = MLClient(nc, timeout_s=5, retries=0)
    with pytest.raises(Unavailable, match="no worker"):
        await ml.generate("x")
    with pytest.raises(Unavailable, match="no worker"):
        await read(ml.stream("x"))


async def test_the_end_of_a_text_at_its_deadline_is_waited_for(worker, ml):
    """A worker may take a second more to tell how far a text came."""

    async def late(worker: Worker, msg: Msg) -> None:
        await frames(*tokens("a"), sentinel=False)(worker, msg)
        await asyncio.sleep(0.7)
        await frames((stream.DONE, 1, {**DONE, "finish_reason": "timeout"}))(worker, msg)

    worker.scripts = [late]
    *_, done = [frame async for frame in ml.stream("x", timeout_s=0.3)]
    assert (done.finish_reason, len(worker.requests)) == ("timeout", 1)
    await none_cancelled(worker, ml)
