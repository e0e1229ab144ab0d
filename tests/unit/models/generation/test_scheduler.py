"""The scheduler alone: decodes first, prompts round-robin, each with space in the cache, none starved."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.generation import scheduler
from models.generation.kv_cache import BLOCK, KVCache, KVShape
from models.generation.scheduler import MAX_STEP_FACTOR, MIN_CHUNK_TOKENS, PREFILL_ONLY_FACTOR, PrefillBudget, Scheduler
from models.generation.sequence import ScheduledChunk, Sequence
from models.generation.types import EngineLimits, Request, Sampling

SHAPE = KVShape(layers=1, heads=1, head_dim=1, dtype=torch.float32)
CHUNK = 16
SCORED = 128


class Simulation:
    """A scheduler whose model always makes token 7. computed: tokens of each sequence, recomputed ones included."""

    def __init__(self, cache_blocks: int = 16, max_running: int = 4, chunk_tokens: int = CHUNK) -> None:
        self.cache = KVCache(SHAPE, cache_blocks * BLOCK, torch.device("cpu"))
        self.scheduler = Scheduler(self.cache, EngineLimits(max_running=max_running, chunk_tokens=chunk_tokens), SCORED)
        self.plans: list[list[ScheduledChunk]] = []
        self.computed: Counter[int] = Counter()
        self.ended: list[int] = []
        self._added = 0

    def add(self, prompt: list[int], max_tokens: int, **fields: Any) -> Sequence:
        request = Request(str(self._added), prompt, max_tokens, **fields)
        sequence = Sequence(request, self._added, None, None)
        self._added += 1
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[ScheduledChunk]:
        chunks = self.scheduler.plan(CHUNK)
        self.plans.append(chunks)
        assert self.cache.used_tokens <= self.cache.tokens
        for chunk in chunks:
            assert chunk.sequence.cache_slice is not None
            assert chunk.sequence.computed + chunk.length <= chunk.sequence.cache_slice.capacity
            self.computed[chunk.sequence.order] += chunk.length
            self.scheduler.mark_computed(chunk)
        for sequence in [chunk.sequence for chunk in chunks if not chunk.sequence.missing]:
            sequence.tokens.append(7)
            if not sequence.left:
                self.scheduler.remove(sequence)
                self.ended.append(sequence.order)
        return chunks

    def run(self, steps: int = 2000) -> None:
        while self.scheduler.running or self.scheduler.waiting:
            assert self.step(), "a sequence waits and none runs"
            assert len(self.plans) < steps


requests = st.lists(
    st.tuples(st.integers(1, 3 * BLOCK), st.integers(1, 2 * BLOCK), st.sampled_from("abc")), min_size=1, max_size=12
)


@given(cases=requests, blocks=st.integers(5, 12), max_running=st.integers(1, 6), ahead=st.sampled_from([2, 256]))
@settings(max_examples=80, deadline=None)
def test_everything_ends_whatever_the_cache_size(
    cases: list[tuple[int, int, str]], blocks: int, max_running: int, ahead: int
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scheduler, "HEADROOM", ahead)
        simulation = Simulation(blocks, max_running)
        for number, (prompt, made, caller) in enumerate(cases):
            simulation.add([number] * prompt, made, caller=caller)

        simulation.run()

    assert sorted(simulation.ended) == list(range(len(cases)))
    assert simulation.scheduler.used_tokens == 0
    assert all(len({chunk.sequence for chunk in plan if chunk.length == 1}) <= max_running for plan in simulation.plans)


def test_decodes_come_first_and_a_chunk_beside_them() -> None:
    simulation = Simulation()
    first = simulation.add([1] * 8, 50)
    simulation.step()
    long = simulation.add([2] * 3 * CHUNK, 1)

    chunks = simulation.step()

    assert [(chunk.sequence, chunk.length) for chunk in chunks] == [(first, 1), (long, CHUNK)]


def test_a_chunk_may_be_longer_without_decodes() -> None:
    simulation = Simulation()
    long = simulation.add([2] * (PREFILL_ONLY_FACTOR + 1) * CHUNK, 1)

    assert simulation.step() == [ScheduledChunk(long, PREFILL_ONLY_FACTOR * CHUNK)]


def test_scored_prompts_share_a_limit_and_use_no_prefix() -> None:
    """Each of their tokens takes a row of scores over the vocabulary."""
    simulation = Simulation(cache_blocks=64, chunk_tokens=SCORED)
    prompt = list(range(SCORED + 60))
    scored = {"sampling": Sampling(logprobs=0), "prompt_logprobs": True}
    first, second = simulation.add(prompt, 1, **scored), simulation.add(prompt, 1, **scored)
    plain = simulation.add([5] * 40, 1)

    steps = [simulation.step() for _ in range(3)]

    assert steps[0] == [ScheduledChunk(first, SCORED), ScheduledChunk(plain, 40)]
    assert steps[1] == [ScheduledChunk(second, SCORED)]
    assert steps[2] == [ScheduledChunk(first, 60), ScheduledChunk(second, 60)]
    assert second.cached == 0


def test_prompts_are_computed_round_robin() -> None:
    simulation = Simulation()
    simulation.add([1] * 8, 50)
    simulation.step()
    left, right = simulation.add([2] * 3 * CHUNK, 1), simulation.add([3] * 3 * CHUNK, 1)

    served = [simulation.step()[1].sequence for _ in range(4)]

    assert served == [left, right, left, right]


def test_a_short_prompt_need_not_wait_for_a_long_one() -> None:
    simulation = Simulation()
    simulation.add([1] * 8, 50)
    simulation.step()
    long, short = simulation.add([2] * 9 * CHUNK, 1), simulation.add([3] * 4, 1)

    simulation.step()
    simulation.step()

    assert short.made == 1
    assert long.missing


def test_a_common_prefix_is_computed_once() -> None:
    simulation = Simulation(32, 8)
    shared = list(range(4 * BLOCK))
    sequences = [simulation.add([*shared, 1000 + number, 1], 3) for number in range(5)]

    simulation.run()

    assert simulation.computed[0] == len(shared) + 2 + 2
    assert [sequence.cached for sequence in sequences] == [0, *[len(shared)] * 4]


def test_a_prompt_waits_only_for_the_common_prefix() -> None:
    simulation = Simulation(64)
    simulation.add([1] * 8, 50)
    simulation.step()
    shared = list(range(BLOCK))
    long, short = simulation.add([*shared, *[5] * 40 * CHUNK], 1), simulation.add([*shared, 6, 7], 1)

    for _ in range(6):
        simulation.step()

    assert (short.made, short.cached) == (1, BLOCK)
    assert long.missing


def test_a_shared_prefix_is_found_after_its_first_holder_is_freed() -> None:
    simulation = Simulation(cache_blocks=12)
    shared = list(range(2 * BLOCK))
    for tail in (1, 2):
        simulation.add([*shared, *[tail] * BLOCK], 1)
        simulation.run()
    first, second = simulation.scheduler._prefixes._kept

    simulation.scheduler._free(first)

    again = simulation.add([*shared, 3, 3], 1)
    simulation.run()
    assert (again.cached, second.cache_slice is not None) == (2 * BLOCK, True)


def test_a_preempted_sequence_reports_no_cached_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "HEADROOM", 1)
    simulation = Simulation(cache_blocks=5)
    sequences = [simulation.add([number] * 40, 60) for number in range(2)]

    simulation.run()

    assert simulation.scheduler.preempted
    assert [sequence.cached for sequence in sequences] == [0, 0]


def test_each_beam_counts_as_running() -> None:
    simulation = Simulation(cache_blocks=64, max_running=4)
    request = Request("beams", [1, 2, 3], 10, num_beams=4)
    siblings = tuple(Sequence(request, 0, None, None) for _ in range(3))
    simulation.scheduler.add(Sequence(request, 0, None, None, siblings=siblings))
    simulation.add([5], 5)

    simulation.step()

    assert [sequence.request.id for sequence in simulation.scheduler.running] == ["beams"]


def test_the_same_prompt_again_computes_its_last_token_only() -> None:
    simulation = Simulation()
    prompt = list(range(2 * BLOCK))
    simulation.add(prompt, 1)
    simulation.run()

    again = simulation.add(prompt, 1)
    simulation.run()

    assert again.cached == len(prompt) - 1


def test_ended_sequences_are_evicted_least_recently_used_first() -> None:
    simulation = Simulation(cache_blocks=8)
    prompts = [[number] * 2 * BLOCK for number in range(2)]
    for prompt in prompts:
        simulation.add(prompt, 1)
        simulation.run()
    simulation.add(prompts[0], 1)  # used again: the other one is older now
    simulation.run()

    simulation.add([9] * 3 * BLOCK, BLOCK)
    simulation.run()

    again = [simulation.add(prompt, 1) for prompt in prompts]
    simulation.run()
    assert [bool(sequence.cached) for sequence in again] == [True, False]


def test_the_latest_is_preempted_and_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "HEADROOM", 1)
    simulation = Simulation(cache_blocks=4)
    early, late = simulation.add([1] * 40, 60), simulation.add([2] * 40, 60)

    simulation.run()

    assert simulation.scheduler.preempted == 1
    assert simulation.computed[early.order] == 40 + 59
    assert simulation.computed[late.order] > 40 + 59
    assert simulation.ended == [early.order, late.order]


def test_a_waiting_sequence_can_be_removed() -> None:
    simulation = Simulation(max_running=1)
    simulation.add([1], 5)
    waiting = simulation.add([2], 5)
    simulation.step()

    simulation.scheduler.remove(waiting)
    simulation.run()

    assert simulation.ended == [0]


def callers(chunks: list[ScheduledChunk]) -> list[str]:
    return [chunk.sequence.request.caller for chunk in chunks]


def test_callers_are_admitted_in_turn() -> None:
    simulation = Simulation(max_running=1)
    for caller in "aaabbc":
        simulation.add([1], 2, caller=caller)
    simulation.run()
    assert simulation.ended == [0, 3, 5, 1, 4, 2]


def test_a_caller_that_holds_everything_is_preempted_for_another() -> None:
    simulation = Simulation()
    many = [simulation.add([number] * 4, 100, caller="many") for number in range(8)]
    for _ in range(10):
        simulation.step()
    assert len(simulation.scheduler.running) == 4
    for number in range(3):
        simulation.add([9 + number], 3, caller="few")
    assert sorted(callers(simulation.step())) == ["few", "few", "many", "many"]
    assert [sequence.cache_slice is not None for sequence in many[:4]] == [True, True, False, False]  # latest preempted
    simulation.run()
    assert simulation.ended[:3] == [8, 9, 10]
    assert sorted(simulation.ended) == list(range(11))
    assert simulation.scheduler.preempted == 2


def test_a_caller_is_not_preempted_below_the_share_of_the_other() -> None:
    simulation = Simulation(max_running=3)
    for caller in "aab":
        simulation.add([1], 4, caller=caller)
    simulation.step()
    simulation.add([1], 4, caller="b")
    simulation.run()
    assert simulation.scheduler.preempted == 0


def trained(decode_s: float, token_s: float, max_tokens: int = 128) -> PrefillBudget:
    budget = PrefillBudget(max_tokens)
    budget.record(4, 0, decode_s)
    budget.record(4, 100, decode_s + 100 * token_s)
    return budget


def test_the_budget_starts_at_the_limit() -> None:
    assert PrefillBudget(128).tokens_per_prompt == 128


def test_a_step_with_prompts_takes_at_most_stretch_times_as_long() -> None:
    assert trained(decode_s=0.02, token_s=0.001).tokens_per_prompt == int((MAX_STEP_FACTOR - 1) * 20)


def test_a_prompt_ends_however_slow_its_tokens_are() -> None:
    assert trained(decode_s=0.001, token_s=0.01).tokens_per_prompt == MIN_CHUNK_TOKENS
    assert trained(decode_s=0.001, token_s=0.01, max_tokens=4).tokens_per_prompt == 4


def test_the_budget_never_passes_the_limit() -> None:
    assert trained(decode_s=1.0, token_s=0.0).tokens_per_prompt == 128
    assert trained(decode_s=1.0, token_s=0.001).tokens_per_prompt == 128


def test_a_step_of_prompts_alone_changes_no_budget() -> None:
    budget = trained(decode_s=0.02, token_s=0.001)
    before = budget.tokens_per_prompt
    budget.record(0, 512, 100.0)
    assert budget.tokens_per_prompt == before
