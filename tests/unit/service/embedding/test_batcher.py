"""The batcher on a fake encoder: what runs together, what goes first, what fails alone, what is never run."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from fake_encoder import MAX_TOKENS, FakeEncoder, vector_of, word_id
from gates import entered

from models.encoders.base import PromptsAndTasks, TextOptions, finish
from models.errors import OutOfDeviceMemory, TextTooLong
from service.admission import LinearCost
from service.embedding import batch_runner
from service.embedding.batch_runner import NonFinite
from service.embedding.batcher import Batcher
from service.embedding.pending_text import BatchLimits, Embedded, EmbedParams, Finish
from service.runtime.device_thread import DeviceThread
from service.telemetry import Telemetry
from subjects.errors import Busy, DeadlinePassed, InvalidField, Unavailable
from subjects.names import Priority

PLAIN = TextOptions()
UNIT = Finish()


@pytest.fixture(params=[False, True], ids=["padded", "packed"])
def encoder(request) -> FakeEncoder:
    return FakeEncoder(packed=request.param)


class Watched(DeviceThread):
    """Notes of each job that it is given whether it is urgent."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.handed: asyncio.Queue[bool] = asyncio.Queue()

    async def run(self, function, *arguments, urgent=False):
        self.handed.put_nowait(urgent)  # heard only after the next line has queued the job
        return await super().run(function, *arguments, urgent=urgent)


@asynccontextmanager
async def batching(encoder: FakeEncoder, device: DeviceThread | None = None, **limits: int) -> AsyncIterator[Batcher]:
    device = device or DeviceThread()
    with ThreadPoolExecutor(3) as pool:
        batcher = Batcher(encoder, device, pool, BatchLimits(**limits), Telemetry())
        task = asyncio.create_task(batcher.run())
        try:
            yield batcher
        finally:
            encoder.gate.set()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            device.close()


def submit(
    batcher: Batcher,
    *texts: str,
    options: TextOptions = PLAIN,
    finish: Finish = UNIT,
    within_s: float = 30,
    priority: Priority = "interactive",
):
    deadline = asyncio.get_running_loop().time() + within_s
    return [text.future for text in batcher.submit(texts, EmbedParams(options, finish, deadline, priority))]


async def tokenised(batcher: Batcher) -> None:
    """Wait until all that was submitted so far waits for the device."""
    with pytest.raises(InvalidField):
        await asyncio.gather(*submit(batcher, " "))  # ends at the tokeniser, behind all the others


async def handed(device: Watched, urgent: bool) -> None:
    """Wait until a job of this kind is with the device."""
    while await asyncio.wait_for(device.handed.get(), 10) != urgent:
        pass


def expected(text: str) -> np.ndarray:
    return finish(vector_of([word_id(word) for word in text.split()])[None], True)[0]


async def test_texts_of_mixed_length_come_back_in_order(encoder):
    texts = [" ".join(f"w{i}" for i in range(1 + 7 * n % 60)) for n in range(200)]
    async with batching(encoder) as batcher:
        done = await asyncio.gather(*submit(batcher, *texts))
    for text, embedded in zip(texts, done, strict=True):
        np.testing.assert_allclose(embedded.vector, expected(text), atol=1e-6)
        assert embedded.tokens == len(text.split())


async def test_what_waits_behind_a_busy_device_runs_as_one_batch(encoder):
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        first = submit(batcher, "first")
        await entered(encoder)
        rest = [future for n in range(50) for future in submit(batcher, f"text {n}")]
        encoder.gate.set()
        await asyncio.gather(*first, *rest)
    assert max(map(len, encoder.batches)) > 20


async def test_only_the_culprit_of_a_failing_batch_fails(encoder):
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        first = submit(batcher, "first")
        await entered(encoder)
        futures = submit(batcher, "a b", "poison b", "c d", "nan d", "e f")
        encoder.gate.set()
        results = await asyncio.gather(*first, *futures, return_exceptions=True)
        assert batcher.queued_texts == batcher.queued_tokens == 0
    assert [type(result) for result in results] == [Embedded, Embedded, RuntimeError, Embedded, NonFinite, Embedded]


async def test_out_of_memory_halves_the_budget_and_loses_nothing():
    encoder = FakeEncoder(memory_tokens=64)
    async with batching(encoder, budget_tokens=1024) as batcher:
        futures = submit(batcher, *(f"a b c {n}" for n in range(200)))
        done = await asyncio.gather(*futures)
        assert batcher.budget_tokens <= 64
        assert batcher.queued_texts == batcher.queued_tokens == 0
    assert len(done) == 200
    assert all(max(batch) * len(batch) <= 64 for batch in encoder.batches)


async def test_a_single_text_that_does_not_fit_the_memory_fails_alone():
    async with batching(FakeEncoder(memory_tokens=16)) as batcher:
        long, short = submit(batcher, " ".join("abcdefghijklmnopqrstuvwxyz"), "a b")
        with pytest.raises(OutOfDeviceMemory):
            await long
        assert (await short).tokens == 2


async def test_a_caller_that_left_costs_the_model_nothing():
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        first = submit(batcher, "first")
        await entered(encoder)
        (gone,) = submit(batcher, "forsaken")
        (stays,) = submit(batcher, "wanted")
        gone.cancel()
        encoder.gate.set()
        await asyncio.gather(*first, stays)
        assert batcher.queued_texts == 0
    assert word_id("forsaken") not in encoder.seen


@pytest.mark.parametrize("priority", ["interactive", "bulk"])
async def test_expired_work_never_reaches_the_model(priority):
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        first = submit(batcher, "first", priority="bulk")
        await entered(encoder)
        (late,) = submit(batcher, "late", within_s=0, priority=priority)
        encoder.gate.set()
        with pytest.raises(DeadlinePassed):
            await late
        await asyncio.gather(*first)
    assert word_id("late") not in encoder.seen


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder, queue_texts=10) as batcher:
        admitted = submit(batcher, *(f"text {n}" for n in range(10)))
        with pytest.raises(Busy) as refused:
            submit(batcher, "one more")
        assert refused.value.retry_after_ms >= 50
        encoder.gate.set()
        assert len(await asyncio.gather(*admitted)) == 10


async def test_the_queue_is_bounded_by_tokens_too():
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder, queue_tokens=100) as batcher:
        submit(batcher, " ".join("x" * 60))
        with pytest.raises(Busy):
            submit(batcher, " ".join("y" * 200))


async def test_a_text_that_waits_for_space_gets_it_when_the_queue_empties():
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder, queue_texts=10) as batcher:
        submit(batcher, *(f"text {n}" for n in range(10)))
        waiting = asyncio.create_task(batcher.wait_for_space(["a"] * 5))
        await entered(encoder)
        assert not waiting.done()
        encoder.gate.set()
        await asyncio.wait_for(waiting, 10)


async def test_options_are_each_texts_own():
    async with batching(FakeEncoder()) as batcher:
        plain, raw, cut, prompted = (
            *submit(batcher, "same text"),
            *submit(batcher, "same text", finish=Finish(normalize=False)),
            *submit(batcher, "same text", finish=Finish(dimensions=3)),
            *submit(batcher, "same text", options=TextOptions(prompt_name="query")),
        )
        done = await asyncio.gather(plain, raw, cut, prompted)
    unscaled = vector_of([word_id("same"), word_id("text")])
    np.testing.assert_allclose(done[0].vector, unscaled / np.linalg.norm(unscaled), atol=1e-6)
    np.testing.assert_allclose(done[1].vector, unscaled, atol=1e-6)
    np.testing.assert_allclose(done[2].vector, unscaled[:3] / np.linalg.norm(unscaled[:3]), atol=1e-6)
    np.testing.assert_allclose(done[3].vector, expected("query: same text"), atol=1e-6)


async def test_a_text_too_long_fails_alone_under_truncate_error():
    long = " ".join(f"w{n}" for n in range(MAX_TOKENS + 5))
    async with batching(FakeEncoder()) as batcher:
        short, too_long = submit(batcher, "short", long, options=TextOptions(truncate="error"))
        with pytest.raises(TextTooLong) as error:
            await too_long
        assert error.value.index == 1
        assert (await short).tokens == 1


async def test_a_cancelled_batcher_leaves_nobody_waiting():
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        futures = submit(batcher, *(f"text {n}" for n in range(20)))
        await entered(encoder)
    results = await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 10)
    assert len(results) == 20


async def test_a_short_memory_on_a_small_batch_costs_no_budget():
    encoder = FakeEncoder(memory_tokens=3)
    async with batching(encoder, budget_tokens=1024) as batcher:
        encoder.gate.clear()
        first = submit(batcher, "first")
        await entered(encoder)
        futures = submit(batcher, "a b", "c d", "e f")
        encoder.gate.set()
        await asyncio.gather(*first, *futures)
        assert batcher.budget_tokens == 1024
    assert encoder.batches == [[1], [2], [2], [2]]


async def test_a_tokeniser_that_fails_on_one_text_fails_that_text_alone():
    class Picky(FakeEncoder):
        def tokenize(self, texts, options):
            if "bad" in texts:
                raise ValueError("cannot")
            return super().tokenize(texts, options)

    async with batching(Picky()) as batcher:
        results = await asyncio.gather(*submit(batcher, "good", "bad", "fine"), return_exceptions=True)
        assert batcher.queued_texts == batcher.queued_tokens == 0
    assert [type(result) for result in results] == [Embedded, ValueError, Embedded]


async def test_a_tokeniser_that_panics_does_not_end_the_batcher():
    class Panic(BaseException):
        pass

    class Breaking(FakeEncoder):
        def tokenize(self, texts, options):
            if "bad" in texts:
                raise Panic
            return super().tokenize(texts, options)

    async with batching(Breaking()) as batcher:
        bad, good = submit(batcher, "bad", "good")
        with pytest.raises(RuntimeError, match="tokeniser broke"):
            await bad
        assert (await good).tokens == 1


async def test_a_text_of_which_nothing_is_left_is_refused(encoder):
    async with batching(encoder) as batcher:
        nothing, something = submit(batcher, " ", "a")
        with pytest.raises(InvalidField):
            await nothing
        assert (await something).tokens == 1


async def test_texts_left_over_wait_for_company_while_the_device_works():
    encoder = FakeEncoder(packed=True)
    encoder.gate.clear()
    async with batching(encoder, budget_tokens=100) as batcher:
        batcher._runner.token_s = 0.1  # as if a full batch took ten seconds
        futures = submit(batcher, *(f"t{n}" for n in range(101)))
        await entered(encoder)
        futures += submit(batcher, *(f"u{n}" for n in range(50)))
        await tokenised(batcher)
        encoder.gate.set()
        await asyncio.gather(*futures)
    assert [len(batch) for batch in encoder.batches] == [100, 51]


async def test_a_long_text_does_not_hold_up_a_short_one():
    held = threading.Event()

    class Slow(FakeEncoder):
        def tokenize(self, texts, options):
            if len(texts[0]) > 20_000:
                assert held.wait(30)
            return super().tokenize(texts, options)

    async with batching(Slow()) as batcher:
        long = submit(batcher, "word " * 9000, "word " * 9000, "word " * 9000)
        (short,) = submit(batcher, "short")
        assert (await asyncio.wait_for(short, 10)).tokens == 1
        held.set()
        await asyncio.gather(*long)


async def test_a_bulk_request_larger_than_the_queue_gets_its_space():
    async with batching(FakeEncoder(), queue_tokens=100, queue_texts=50) as batcher:
        await asyncio.wait_for(batcher.wait_for_space(["word " * 60] * 200), 10)
        held = submit(batcher, "a", "b")
        await asyncio.wait_for(batcher.wait_for_space(["word " * 60] * 200), 10)
        await asyncio.gather(*held)


async def test_a_batcher_that_has_ended_refuses():
    async with batching(FakeEncoder()) as batcher:
        await asyncio.gather(*submit(batcher, "a"))
    with pytest.raises(Unavailable):
        submit(batcher, "b")


# Beside bulk


async def test_an_interactive_text_runs_between_the_layers_of_a_bulk_pass(encoder):
    encoder.layers = 2
    encoder.gate.clear()
    async with batching(encoder, device := Watched()) as batcher:
        bulk = submit(batcher, "a b", "c d", "e f", priority="bulk")
        await entered(encoder)
        (single,) = submit(batcher, "g h i")
        await handed(device, urgent=True)
        encoder.gate.set()
        done = await asyncio.gather(*bulk, single)
    assert encoder.batches == [[2, 2, 2], [3]]
    assert encoder.ended == [[3], [2, 2, 2]]
    for text, embedded in zip(("a b", "c d", "e f", "g h i"), done, strict=True):
        np.testing.assert_allclose(embedded.vector, expected(text), atol=1e-6)


async def test_bulk_and_interactive_texts_share_no_batch(encoder):
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        first = submit(batcher, "first")
        await entered(encoder)
        bulk = submit(batcher, *(f"a b {n}" for n in range(20)), priority="bulk")
        singles = submit(batcher, *(f"{n}" for n in range(20)))
        encoder.gate.set()
        await asyncio.gather(*first, *bulk, *singles)
    assert all(len(set(batch)) == 1 for batch in encoder.batches)


async def test_bulk_keeps_its_batches_full_whatever_comes_between():
    encoder = FakeEncoder(packed=True, layers=3)
    encoder.gate.clear()
    async with batching(encoder, device := Watched(), budget_tokens=100) as batcher:
        bulk = submit(batcher, *(f"t{n}" for n in range(250)), priority="bulk")
        await entered(encoder)
        for n in range(5):
            (single,) = submit(batcher, f"a b {n}")
            await handed(device, urgent=True)
            encoder.gate.set()
            await single
        await asyncio.gather(*bulk)
    assert [len(batch) for batch in encoder.batches if batch[0] == 1] == [100, 100, 50]


async def test_bulk_batches_shrink_where_a_pass_cannot_stop_in_time(monkeypatch):
    monkeypatch.setattr(batch_runner, "YIELD_S", 0.0)
    encoder = FakeEncoder(packed=True)
    async with batching(encoder, budget_tokens=1000) as batcher:
        await asyncio.gather(*submit(batcher, *(f"t{n}" for n in range(1000)), priority="bulk"))
        await asyncio.gather(*submit(batcher, *(f"t{n}" for n in range(1000)), priority="bulk"))
        await asyncio.gather(*submit(batcher, *(f"t{n}" for n in range(1000))))
    least = batch_runner.LEAST_TOKENS
    assert list(map(len, encoder.batches)) == [1000, *[least] * (1000 // least), 1000 % least, 1000]


async def test_bulk_ends_although_others_never_stop_asking():
    passed_s = 0.0
    ended = asyncio.Event()

    class Slow(FakeEncoder):
        def encode(self, batch, between_layers=None):
            nonlocal passed_s
            passed_s += 0.25
            return super().encode(batch, between_layers)

    async def ask_on(batcher: Batcher) -> None:
        while not ended.is_set():
            await asyncio.gather(*submit(batcher, "please", "and thanks"))

    encoder = Slow(layers=4)
    async with batching(encoder, DeviceThread(clock=lambda: passed_s)) as batcher, asyncio.TaskGroup() as callers:
        for _ in range(4):
            callers.create_task(ask_on(batcher))
        await asyncio.wait_for(asyncio.gather(*submit(batcher, *["a b c"] * 10, priority="bulk")), 30)
        ended.set()


async def test_a_text_that_fails_inside_a_bulk_pass_harms_nobody_else():
    encoder = FakeEncoder(layers=2)
    encoder.gate.clear()
    async with batching(encoder, device := Watched()) as batcher:
        bulk = submit(batcher, "a b", "c d", priority="bulk")
        await entered(encoder)
        singles = submit(batcher, "poison", "nan", "fine")
        await handed(device, urgent=True)
        encoder.gate.set()
        results = await asyncio.gather(*bulk, *singles, return_exceptions=True)
        assert batcher.queued_texts == batcher.queued_tokens == 0
    assert [type(result) for result in results] == [Embedded, Embedded, RuntimeError, NonFinite, Embedded]


async def test_a_text_without_memory_inside_a_bulk_pass_runs_after_it():
    encoder = FakeEncoder(memory_tokens=8, layers=2)
    encoder.gate.clear()
    async with batching(encoder, device := Watched()) as batcher:
        bulk = submit(batcher, "a b c", "d e f", priority="bulk")
        await entered(encoder)
        (single,) = submit(batcher, "g h i")
        await handed(device, urgent=True)
        encoder.gate.set()
        await asyncio.gather(*bulk, single)
        assert batcher.budget_tokens == BatchLimits().budget_tokens
    assert encoder.ended == [[3, 3], [3]]


async def test_a_bulk_that_is_given_up_ends_between_the_layers():
    encoder = FakeEncoder(layers=2)
    encoder.gate.clear()
    async with batching(encoder, budget_tokens=6) as batcher:
        bulk = submit(batcher, "a b c", "d e f", "forsaken", priority="bulk")
        await entered(encoder)
        for future in bulk:
            future.cancel()
        encoder.gate.set()
        await asyncio.gather(*submit(batcher, "another one here", priority="bulk"))
        assert batcher.queued_texts == batcher.queued_tokens == 0
    assert encoder.ended == [[3]]
    assert word_id("forsaken") not in encoder.seen


async def test_a_bulk_that_is_given_up_in_part_goes_on_for_the_rest():
    encoder = FakeEncoder(layers=2)
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        gone, stays = submit(batcher, "a b", "c d", priority="bulk")
        await entered(encoder)
        gone.cancel()
        encoder.gate.set()
        np.testing.assert_allclose((await stays).vector, expected("c d"), atol=1e-6)


@pytest.mark.parametrize(("full", "other"), [("bulk", "interactive"), ("interactive", "bulk")])
async def test_each_priority_has_its_own_limits(full, other):
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder, queue_texts=10) as batcher:
        admitted = submit(batcher, *(f"text {n}" for n in range(10)), priority=full)
        with pytest.raises(Busy):
            submit(batcher, "one more", priority=full)
        await asyncio.wait_for(batcher.wait_for_space(["one more"], other), 10)
        admitted += submit(batcher, "one more", priority=other)
        encoder.gate.set()
        await asyncio.gather(*admitted)


async def test_bulk_at_the_tokeniser_does_not_hold_up_an_interactive_text():
    held = threading.Event()

    class Slow(FakeEncoder):
        def tokenize(self, texts, options):
            if texts[0] == "bulk":
                assert held.wait(30)
            return super().tokenize(texts, options)

    async with batching(Slow()) as batcher:
        bulk = submit(batcher, *["bulk"] * 100, priority="bulk")
        (single,) = submit(batcher, "single")
        assert (await asyncio.wait_for(single, 10)).tokens == 1
        held.set()
        await asyncio.gather(*bulk)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
async def test_a_batch_holds_texts_of_one_task(packed):
    encoder = FakeEncoder(packed=packed, names=PromptsAndTasks(tasks={"find": 0, "match": 1}, default_task="match"))
    tasks = [TextOptions(task="find"), TextOptions(task="match"), TextOptions()]
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        batcher._runner.token_s = 10  # so that the next batches wait for company
        first = submit(batcher, "first")
        await entered(encoder)
        futures = [future for n in range(30) for future in submit(batcher, f"text {n}", options=tasks[n % 3])]
        await tokenised(batcher)
        encoder.gate.set()
        done = await asyncio.gather(*first, *futures)
    assert len(done) == 31
    assert sorted(map(len, encoder.batches)) == [1, 10, 20]


async def slow_by(encoder: FakeEncoder, batcher: Batcher, text: str, seconds: float) -> None:
    """Have a text take this long, so that the queue counts as slow; then let nothing end any more."""
    encoder.gate.clear()
    (slow,) = submit(batcher, text)
    await entered(encoder)
    await asyncio.sleep(seconds)
    encoder.gate.set()
    await slow
    encoder.gate.clear()


def require_time(batcher: Batcher, text: str, within_s: float) -> None:
    batcher.require_time([text], EmbedParams(PLAIN, UNIT, asyncio.get_running_loop().time() + within_s))


async def test_what_would_be_late_is_refused_at_once_and_says_when_to_come_back(encoder):
    async with batching(encoder, budget_tokens=1) as batcher:
        await slow_by(encoder, batcher, "slow", 0.05)
        waits = submit(batcher, "word " * MAX_TOKENS)
        with pytest.raises(Busy, match="past the deadline") as refused:
            require_time(batcher, "one more", within_s=2)
        assert refused.value.retry_after_ms >= 1200  # 64 tokens of 50 ms, less the two seconds that it has
        require_time(batcher, "one more", within_s=600)
        require_time(batcher, "one more", within_s=0)  # it is answered that its deadline has passed
        encoder.gate.set()
        await asyncio.gather(*waits)


async def test_the_backlog_of_one_source_has_nothing_of_anothers_refused(encoder):
    async with batching(encoder, budget_tokens=1) as batcher:
        await slow_by(encoder, batcher, "slow", 0.05)
        deadline = asyncio.get_running_loop().time() + 20
        many = EmbedParams(PLAIN, UNIT, deadline, caller="many")
        texts = ["word " * MAX_TOKENS] * 20  # a minute's work
        waits = [text.future for text in batcher.submit(texts, replace(many, deadline=deadline + 100))]
        with pytest.raises(Busy, match="past the deadline"):
            batcher.require_time(["one more"], many)
        batcher.require_time(["one more"], replace(many, caller="one"))
        encoder.gate.set()
        await asyncio.gather(*waits)


async def test_an_idle_queue_takes_anything_however_slow_it_was(encoder):
    async with batching(encoder, budget_tokens=1) as batcher:
        await slow_by(encoder, batcher, "slow", 0.05)
        require_time(batcher, "word " * MAX_TOKENS, within_s=0.1)


async def test_long_texts_are_expected_to_have_as_many_tokens_as_the_latest(encoder):
    """A token has ten characters: else a request that has time enough would be refused."""
    async with batching(encoder, budget_tokens=1) as batcher:
        await asyncio.gather(*submit(batcher, *["abcdefghi " * 20] * 200))
        await slow_by(encoder, batcher, "slow", 0.02)
        waits = submit(batcher, "abcdefghi " * 20)
        require_time(batcher, "abcdefghi " * 20, within_s=3)  # 40 tokens of 20 ms
        encoder.gate.set()
        await asyncio.gather(*waits)


async def test_what_has_become_late_is_dropped_before_its_deadline(encoder):
    encoder.gate.clear()
    async with batching(encoder) as batcher:
        batcher._runner.token_s = 1.0  # the running one, and
        batcher._queues["interactive"]._batch_cost.observe(1, 1.0)  # any other
        running = submit(batcher, "a")
        await entered(encoder)
        with pytest.raises(DeadlinePassed, match="cannot be ready"):
            await asyncio.gather(*submit(batcher, "late", within_s=1.9))
        encoder.gate.set()
        await asyncio.gather(*running)
    assert word_id("late") not in encoder.seen


async def test_a_budget_that_was_halved_grows_again_and_no_further(monkeypatch):
    monkeypatch.setattr(batch_runner, "GROW_S", 0.0)
    encoder = FakeEncoder(memory_tokens=64)
    async with batching(encoder, budget_tokens=256) as batcher:
        await asyncio.gather(*submit(batcher, *(f"a b c {n}" for n in range(200))))
        assert batcher.budget_tokens < 256
        encoder.memory_tokens = 10_000
        await asyncio.gather(*submit(batcher, *(f"a b c {n}" for n in range(2000))))
        assert batcher.budget_tokens == 256
    assert max(max(batch) * len(batch) for batch in encoder.batches) <= 256


async def test_a_text_with_time_enough_is_not_dropped_for_what_tokens_took_in_small_batches():
    encoder = FakeEncoder(packed=True)
    async with batching(encoder, budget_tokens=64) as batcher:
        for tokens in (1, 64):
            await asyncio.gather(*submit(batcher, "word " * tokens))
        batcher._runner.token_s = 1.0  # as many texts of one token would have it, a second each
        encoder.gate.clear()
        encoder.entered.clear()
        first = submit(batcher, "word " * 64)
        await entered(encoder)
        others = submit(batcher, "word " * 64, "word " * 64, within_s=20)
        await tokenised(batcher)
        encoder.gate.set()
        await asyncio.gather(*first, *others)


async def test_nothing_is_learned_of_texts_that_nobody_ran():
    encoder = FakeEncoder()
    encoder.gate.clear()
    async with batching(encoder, device := Watched()) as batcher:
        first = submit(batcher, "first")
        await entered(encoder)
        device.handed.get_nowait()
        late = submit(batcher, "late", within_s=0.1)
        await handed(device, urgent=True)
        await asyncio.sleep(0.1)
        encoder.gate.set()
        with pytest.raises(DeadlinePassed):
            await asyncio.gather(*late)
        await asyncio.gather(*first, *submit(batcher, "another"))
        queue = batcher._queues["interactive"]
    assert queue._batch_cost._weight == pytest.approx(1.98, abs=0.001)  # of two batches


async def test_a_long_text_beside_short_ones_with_a_long_prompt_has_no_more_tokens_than_fit():
    encoder = FakeEncoder(names=PromptsAndTasks(prompts={"long": "find " * 50}))
    async with batching(encoder, budget_tokens=1) as batcher:
        prompted = TextOptions(prompt_name="long")
        await asyncio.gather(*submit(batcher, *["a"] * 200, options=prompted))  # 51 tokens of 3 characters
        encoder.gate.clear()
        batcher._queues["interactive"]._batch_cost = cost = LinearCost()
        cost.observe(1, 0.02)
        waits = submit(batcher, "another")
        require_time(batcher, "word " * MAX_TOKENS, within_s=10)  # 64 tokens of 20 ms
        encoder.gate.set()
        await asyncio.gather(*waits)
