"""A loaded engine at work, without a bus: its steps, the event queues of its calls, its end, its watchdog."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, closing, suppress
from typing import Any

import pytest
from fake_engine import FakeEngine
from gates import entered
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from models.generation.errors import DuplicateRequest
from models.generation.types import EngineLimits, Event, Finished, Piece, Plain, Request, TokenLogprob, Usage
from service.generation.completion_stream import CompletionStream
from service.generation.engine_loop import EngineFailed
from service.generation.event_queue import LIMIT_CHARS, EventQueue
from service.generation.generator import Generator
from service.residency.loader import LEAST_KV_BYTES, ModelLoader
from service.runtime.device_thread import DeviceThread
from service.settings import Settings
from service.telemetry import GenerationTelemetry
from subjects.errors import Busy, Cancelled, DeadlinePassed, Unavailable


@asynccontextmanager
async def running(engine: FakeEngine, **options: Any) -> AsyncIterator[Generator]:
    """A generator at work on a device of its own."""
    died: list[BaseException] = []
    with closing(DeviceThread()) as device:
        generator = Generator(engine, device, GenerationTelemetry(CollectorRegistry()), **options)
        generator.start(died.append)
        try:
            yield generator
        finally:
            engine.gate.set()
            await generator.close()
    assert not died


def counted(generator: Generator) -> Mapping[str, int]:
    """What telemetry has counted of the model."""
    return generator._loop._telemetry.figures()[generator.facts.model]


async def requests(generator: Generator, *prompts: str, max_tokens: int = 3):
    for prompt in prompts:
        name = prompt.replace(" ", "-")
        yield await generator.request(
            Plain(prompt), lambda tokens, name=name: Request(name, tokens.ids, max_tokens, stop_ids=tokens.stop_ids)
        )


async def told(stream: CompletionStream, requested) -> dict[str, list[Event]]:
    """All events of a stream, by request."""
    by_request: dict[str, list[Event]] = {}
    async with aclosing(stream.events(requested)) as news:
        async for events in news:
            for event in events:
                by_request.setdefault(event.request, []).append(event)
    for events in by_request.values():
        assert [isinstance(event, Finished) for event in events] == [False] * (len(events) - 1) + [True]
    return by_request


def text(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Piece))


# The event queue


@given(st.lists(st.sampled_from(["a", "b", "take"]), max_size=40))
def test_what_is_taken_joined_is_what_was_put(moves: list[str]):
    async def scenario() -> None:
        queue = EventQueue()
        put: dict[str, str] = {"a": "", "b": ""}
        taken: dict[str, str] = {"a": "", "b": ""}
        for name in put:
            queue.open(name)
        waiting = 0
        for number, move in enumerate(moves):
            if move == "take" and waiting:
                events = await queue.take()
                assert len({event.request for event in events}) == len(events)
                for event in events:
                    taken[event.request] += event.text
                waiting = 0
            elif move != "take":
                queue.put(Piece(move, f"{number},", 1, (TokenLogprob(number, b"", -1.0),)))
                put[move] += f"{number},"
                waiting += 1
        queue.seal()
        for name in put:
            queue.put(Finished(name, "stop", Usage(1, 0, 1)))
        while events := await queue.take():
            for event in events:
                if isinstance(event, Piece):
                    taken[event.request] += event.text
        assert taken == put

    asyncio.run(scenario())


async def test_merged_pieces_count_their_tokens_and_keep_their_logprobs():
    queue = EventQueue()
    queue.open("a")
    for number in range(3):
        queue.put(Piece("a", f"{number}", number, (TokenLogprob(number, b"", -1.0),)))
    (piece,) = await queue.take()
    assert isinstance(piece, Piece)
    assert (piece.text, piece.tokens, [logprob.id for logprob in piece.logprobs]) == ("012", 3, [0, 1, 2])


async def test_later_pieces_wait_for_others_and_an_end_does_not():
    queue, loop = EventQueue(), asyncio.get_running_loop()
    queue.open("a")
    queue.put(Piece("a", "x"))
    far = loop.time() + 1000
    taking = asyncio.create_task(queue.take(far))
    await asyncio.sleep(0)
    assert not taking.done()
    queue.put(Finished("a", "stop", Usage(1, 0, 1)))
    assert [type(event) for event in await taking] == [Piece, Finished]


async def test_a_queue_that_nobody_empties_says_so_and_then_holds_nothing():
    queue = EventQueue()
    queue.open("a")
    assert queue.put(Piece("a", "x" * 2 * LIMIT_CHARS)), "nobody has had a chance to take it"
    assert not queue.put(Piece("a", "x"))
    queue.fail(Cancelled("slow"))
    queue.fail(Unavailable("later"))
    assert queue.put(Piece("a", "x"))
    with pytest.raises(Cancelled):
        await queue.take()


async def test_a_queue_that_is_not_bounded_takes_everything():
    queue = EventQueue(bounded=False)
    queue.open("a")
    for _ in range(3):
        assert queue.put(Piece("a", "x" * 2 * LIMIT_CHARS))
    (piece,) = await queue.take()
    assert len(piece.text) == 6 * LIMIT_CHARS


# Steps


async def test_completions_share_steps_and_each_ends_once():
    engine = FakeEngine()
    async with running(engine) as generator:
        streams = [told(generator.stream(), requests(generator, f"a {n}", f"b {n}", max_tokens=20)) for n in range(10)]
        for by_request in await asyncio.gather(*streams):
            assert {text(events) for events in by_request.values()} == {"".join(f" {n}" for n in range(20))}
    assert max(engine.steps) > 1
    assert engine.closed


async def test_a_reply_that_is_whole_is_not_collected_piece_by_piece(monkeypatch):
    monkeypatch.setattr("service.generation.completion_stream.WHOLE_INTERVAL_S", 1000.0)
    async with running(FakeEngine()) as generator:
        stream = generator.stream(streamed=False)
        told_at_once = [events async for events in stream.events(requests(generator, "a", max_tokens=500))]
    assert len(told_at_once) <= 2
    assert text([event for events in told_at_once for event in events]) == "".join(f" {n}" for n in range(500))


async def test_a_call_that_leaves_takes_its_completions_out():
    engine = FakeEngine()
    engine.hold_after(1)
    async with running(engine) as generator:
        news = generator.stream().events(requests(generator, "a", "b", max_tokens=1000))
        await anext(news)
        await news.aclose()
        engine.release()
        assert text((await told(generator.stream(), requests(generator, "c")))["c"]) == " 0 1 2"
    assert "a" in engine.aborts
    assert sum(engine.steps) < 1000
    left = [request for request in engine.requests if request in ("a", "b")]
    assert counted(generator)["cancelled"] == len(left), "what it made counts all the same"


async def test_a_call_that_is_cancelled_again_while_it_leaves_has_left():
    engine, begun, leaving = FakeEngine(), asyncio.Event(), asyncio.Event()
    engine.hold_after(1)

    async def asked(generator: Generator):
        async for request in requests(generator, "a", max_tokens=1000):
            yield request
        try:
            await asyncio.Event().wait()
        finally:
            leaving.set()
            await asyncio.Event().wait()

    async def call(generator: Generator) -> None:
        async with aclosing(generator.stream().events(asked(generator))) as news:
            async for _ in news:
                begun.set()

    async with running(engine) as generator:
        calling = asyncio.create_task(call(generator))
        await begun.wait()
        calling.cancel()
        await leaving.wait()
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
        assert not generator._loop._requests


async def test_random_comings_and_goings_leave_nothing_behind():
    engine = FakeEngine(limits=EngineLimits(max_running=3, waiting=4))

    async def one(generator: Generator, number: int) -> None:
        stream = generator.stream()
        asked = requests(generator, *(f"p {number} {part}" for part in range(3)), max_tokens=2 + number)
        with suppress(Busy):
            if number % 3 == 0:
                await told(stream, asked)
            elif number % 3 == 1:
                async with aclosing(stream.events(asked)) as news:
                    async for _ in news:
                        break
            else:
                async with aclosing(stream.events(asked)) as news:
                    async for _ in news:
                        stream.end("cancelled")

    async with running(engine) as generator:
        await asyncio.gather(*(one(generator, number) for number in range(30)))
        assert text((await told(generator.stream(), requests(generator, "last")))["last"]) == " 0 1 2"
        assert not generator._loop._requests
    assert engine.is_idle


async def test_an_id_twice_is_refused():
    engine = FakeEngine()
    engine.gate.clear()
    async with running(engine) as generator:
        first = asyncio.create_task(told(generator.stream(), requests(generator, "a")))
        await entered(engine)
        ((end,),) = (await told(generator.stream(), requests(generator, "a"))).values()
        assert isinstance(end, Finished)
        assert isinstance(end.error, DuplicateRequest)
        engine.gate.set()
        assert text((await first)["a"]) == " 0 1 2"


async def test_a_stream_that_is_cancelled_before_it_began_is_over():
    async with running(FakeEngine()) as generator:
        stream = generator.stream()
        stream.end("cancelled")
        assert await told(stream, requests(generator, "a")) == {}


async def test_only_the_first_completion_of_a_call_is_refused_for_want_of_a_slot():
    engine = FakeEngine(limits=EngineLimits(max_running=1, waiting=1))
    engine.gate.clear()
    async with running(engine) as generator:
        first = asyncio.create_task(told(generator.stream(), requests(generator, "a")))
        await entered(engine)
        second = asyncio.create_task(told(generator.stream(), requests(generator, "b", "c", "d")))
        third = asyncio.create_task(told(generator.stream(), requests(generator, "e")))
        engine.gate.set()
        with pytest.raises(Busy) as refused:
            await third
        assert refused.value.retry_after_ms
        assert list(await second) == ["b", "c", "d"]
        assert list(await first) == ["a"]
        assert counted(generator)["refused"] == 1


class Panic(BaseException):
    """As Rust's in Python."""


class Broken(FakeEngine):
    """Every step raises."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error: BaseException | None = error
        self.tries = 0

    def step(self) -> list[Event]:
        self.tries += 1
        if self.error is not None:
            raise self.error
        return super().step()


@pytest.mark.parametrize("error", [RuntimeError("cuda"), Panic()])
async def test_an_engine_that_fails_at_every_step_ends_its_requests_and_is_left_alone(error):
    engine = Broken(error)
    with capture_logs() as logs:
        await fails_and_recovers(engine)
    assert {entry["event"] for entry in logs} == {"step.failed"}


async def fails_and_recovers(engine: Broken) -> None:
    async with running(engine) as generator:
        for name in ("a", "b"):
            ((end,),) = (await told(generator.stream(), requests(generator, name))).values()
            assert isinstance(end.error, EngineFailed)
        assert engine.tries <= 8
        engine.error = None
        assert text((await told(generator.stream(), requests(generator, "c")))["c"]) == " 0 1 2"


async def test_what_runs_when_it_stops_is_told_so_and_what_comes_later_too():
    engine = FakeEngine()
    engine.hold_after(1)
    async with running(engine) as generator:
        news = generator.stream().events(requests(generator, "a", max_tokens=1000))
        await anext(news)
        await generator.stop()
        with pytest.raises(Unavailable):
            async for _ in news:
                pass
        engine.release()
        late = Request("late", (1,), 3)

        async def one():
            yield late

        with pytest.raises(Unavailable):
            await told(generator.stream(), one())


async def test_a_panic_of_the_tokeniser_is_an_error_of_its_prompt():
    class Panicking(FakeEngine):
        def prompt_tokens(self, prompt, max_tokens=0, num_beams=1):
            raise Panic

    async with running(Panicking()) as generator:
        with pytest.raises(RuntimeError, match="tokeniser broke"):
            await told(generator.stream(), requests(generator, "a"))


# The watchdog


async def test_a_step_that_takes_too_long_is_logged_while_it_runs_and_when_it_has_ended():
    engine, stuck = FakeEngine(), asyncio.Event()
    engine.gate.clear()
    with capture_logs() as logs:
        async with running(engine, stuck_step_s=0.05) as generator:
            check = generator._loop.watchdog._check

            def noted() -> None:
                check()
                if any(entry["event"] == "step.stuck" for entry in logs):
                    stuck.set()

            generator._loop.watchdog._check = noted
            running_one = asyncio.create_task(told(generator.stream(), requests(generator, "a")))
            await asyncio.wait_for(stuck.wait(), 10)
            assert generator.stuck_s >= 0.05
            engine.gate.set()
            await running_one
            assert generator.stuck_s == 0
    events = [entry for entry in logs if entry["event"].startswith("step.stuck")]
    assert {entry["event"] for entry in events} == {"step.stuck", "step.stuck_ended"}
    assert events[-1]["event"] == "step.stuck_ended"
    for entry in events:
        assert (entry["model"], entry["seconds"] >= 0.05) == ("tiny_coder", True)


# What an engine takes on


@pytest.mark.parametrize(
    ("settings", "context_bytes", "kv_bytes"),
    [
        ({"memory": {"budget_gb": 8}}, 10**9, 10**9),
        ({"memory": {"budget_gb": 8}}, 10**6, 33 * 10**6),
        ({"memory": {"budget_gb": 0.1}}, 10**9, LEAST_KV_BYTES),
        ({"memory": {"budget_gb": 8}, "generation": {"kv_gb": 2}}, 10**6, 2 * 10**9),
    ],
)
def test_keys_and_values_get_a_share_of_the_memory_and_no_more_than_is_of_use(settings, context_bytes, kv_bytes):
    limits = ModelLoader(Settings(**settings))._engine_limits("cpu", context_bytes)
    assert (limits.kv_bytes, limits.chunk_tokens) == (kv_bytes, 128)
    assert ModelLoader(Settings(**settings))._engine_limits("cuda:0", context_bytes).chunk_tokens == 1024


async def added(engine: FakeEngine, requests: int) -> None:
    """Wait until the engine has been given this many requests in all."""
    async with asyncio.timeout(10):
        while len(engine.requests) < requests:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_text_that_would_be_late_is_refused_at_once_and_says_when_to_come_back():
    engine = FakeEngine(limits=EngineLimits(max_running=2, waiting=50))
    engine.slow(0.02)
    async with running(engine) as generator:
        loop = asyncio.get_running_loop()
        await told(generator.stream(), requests(generator, "a", max_tokens=10))
        others = [
            asyncio.create_task(told(generator.stream(), requests(generator, f"b {n}", max_tokens=500)))
            for n in range(4)
        ]
        await added(engine, 5)
        with pytest.raises(Busy, match="past the deadline") as refused:
            await told(generator.stream(deadline=loop.time() + 2), requests(generator, "c", max_tokens=10))
        assert refused.value.retry_after_ms >= 10_000  # two times 500 steps of 20 ms
        patient = asyncio.create_task(
            told(generator.stream(deadline=loop.time() + 600), requests(generator, "d", max_tokens=10))
        )
        engine.release()
        await asyncio.gather(patient, *others)


async def test_a_text_too_long_for_its_deadline_even_alone_need_only_begin_in_time():
    engine = FakeEngine()
    engine.slow(0.02)
    async with running(engine) as generator:
        loop = asyncio.get_running_loop()
        await told(generator.stream(), requests(generator, "a", max_tokens=10))
        other = asyncio.create_task(told(generator.stream(), requests(generator, "b", max_tokens=400)))
        long = generator.stream(deadline=loop.time() + 5)
        long = asyncio.create_task(told(long, requests(generator, "c", max_tokens=4000)))
        await added(engine, 3)
        engine.release()
        await asyncio.gather(other, long)


async def test_a_text_in_one_reply_that_would_be_late_even_alone_is_refused_beside_others():
    engine = FakeEngine()
    engine.slow(0.02)
    async with running(engine) as generator:
        deadline = asyncio.get_running_loop().time() + 5
        await told(generator.stream(), requests(generator, "a", max_tokens=10))
        other = asyncio.create_task(told(generator.stream(), requests(generator, "b", max_tokens=400)))
        await added(engine, 2)
        with pytest.raises(Busy, match="past the deadline"):
            await told(generator.stream(False, deadline), requests(generator, "c", max_tokens=4000))
        engine.release()
        await other


async def test_a_text_that_has_become_late_while_it_waited_is_never_begun():
    engine = FakeEngine(limits=EngineLimits(max_running=1, waiting=50))
    engine.slow(0.005)
    async with running(engine) as generator:
        loop = asyncio.get_running_loop()
        await told(generator.stream(), requests(generator, "a", max_tokens=10))
        engine.gate.clear()
        running_one = asyncio.create_task(told(generator.stream(), requests(generator, "b", max_tokens=20)))
        late = generator.stream(deadline=loop.time() + 0.5)
        late = asyncio.create_task(told(late, requests(generator, "c", max_tokens=20)))
        await asyncio.sleep(0.45)  # it would take 0.1 s
        engine.gate.set()
        with pytest.raises(DeadlinePassed):
            await late
        await running_one
    assert sum(engine.steps) == 30


async def test_at_the_deadline_of_several_texts_those_that_never_began_fail_nothing():
    engine = FakeEngine(limits=EngineLimits(max_running=1, waiting=50))
    async with running(engine) as generator:
        await told(generator.stream(), requests(generator, "a", max_tokens=2))
        engine.hold_after(5)
        loop = asyncio.get_running_loop()
        stream = generator.stream(deadline=loop.time() + 0.2)
        both = asyncio.create_task(told(stream, requests(generator, "b", "c", max_tokens=20)))
        await added(engine, 3)
        await asyncio.sleep(0.3)  # a step goes past the deadline
        stream.end("timeout")
        engine.release()
        assert [events[-1].reason for events in (await both).values()] == ["timeout", "timeout"]
