"""The cache of keys and values: runs never overlap, keep what they hold however they move, and fill all there is."""

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from models.generation.kv_cache import BLOCK, CacheSlice, KVCache, KVShape, blocks, kv_dtype

SHAPE = KVShape(layers=2, heads=1, head_dim=2, dtype=torch.float32)
CPU = torch.device("cpu")


def new_cache(tokens: int = 8 * BLOCK) -> KVCache:
    return KVCache(SHAPE, tokens, CPU)


@dataclass(eq=False)
class Held:
    """A run and what was written to it: for each token a number of its own."""

    run: CacheSlice
    marks: list[float] = field(default_factory=list)


class Runs(RuleBasedStateMachine):
    """Any order of what may be done to a cache."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.cache = new_cache()
        self.alive: list[Held] = []
        self.next_mark = 0.0

    def write(self, held: Held, upto: int) -> None:
        while len(held.marks) < min(upto, held.run.capacity):
            self.next_mark += 1
            at = held.run.start + len(held.marks)
            for layer in (*self.cache.keys, *self.cache.values):
                layer[:, at] = self.next_mark
            held.marks.append(self.next_mark)

    @rule(target=held, tokens=st.integers(1, 5 * BLOCK), filled=st.integers(0, 5 * BLOCK))
    def allocate(self, tokens: int, filled: int):
        free = self.cache.tokens - self.cache.used_tokens
        run = self.cache.allocate(tokens)
        assert (run is None) == (blocks(tokens) > free)
        if run is None:
            return multiple()
        self.alive.append(held := Held(run))
        self.write(held, min(filled, tokens))
        return held

    @rule(held=held, more=st.integers(1, 3 * BLOCK))
    def grow(self, held: Held, more: int) -> None:
        if held not in self.alive:
            return
        wanted = held.run.capacity + more
        others = self.cache.used_tokens - held.run.capacity
        room = self.cache.tokens - others
        grown = self.cache.grow(held.run, wanted, len(held.marks))
        assert grown <= (blocks(wanted) <= room)
        assert grown or others or blocks(wanted) > room
        assert grown or blocks(wanted) + self.cache.used_tokens > self.cache.tokens
        self.write(held, wanted)

    @rule(held=held, keep=st.integers(1, 2 * BLOCK))
    def shrink(self, held: Held, keep: int) -> None:
        if held in self.alive:
            self.cache.shrink(held.run, keep)
            del held.marks[held.run.capacity :]

    @rule(source=held, into=held)
    def copy(self, source: Held, into: Held) -> None:
        if source is into or source not in self.alive or into not in self.alive:
            return
        tokens = min(len(source.marks), into.run.capacity)
        self.cache.copy(source.run, into.run, tokens)
        into.marks[:tokens] = source.marks[:tokens]

    @rule(held=held)
    def free(self, held: Held) -> None:
        if held in self.alive:
            self.alive.remove(held)
            self.cache.free(held.run)

    @invariant()
    def nothing_is_lost(self) -> None:
        for held in self.alive:
            start = held.run.start
            for layer in (*self.cache.keys, *self.cache.values):
                assert layer[0, start : start + len(held.marks), 0].tolist() == held.marks

    @invariant()
    def runs_lie_apart_within_the_arena(self) -> None:
        runs = sorted((held.run for held in self.alive), key=lambda run: run.start)
        ends = [0, *(run.start + run.capacity for run in runs)]
        assert all(run.start >= end for run, end in zip(runs, ends, strict=False))
        assert ends[-1] <= self.cache.tokens
        assert self.cache.used_tokens == sum(run.capacity for run in runs)


Runs.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestRuns = Runs.TestCase


def test_a_cache_takes_as_many_bytes_as_it_is_given() -> None:
    budget = 1_000_000
    tokens = SHAPE.tokens_in(budget)

    cache = new_cache(tokens)

    assert cache.nbytes == (tokens + BLOCK) * SHAPE.token_bytes
    assert budget - BLOCK * SHAPE.token_bytes < cache.nbytes <= budget


def test_a_budget_below_one_block_holds_nothing() -> None:
    assert SHAPE.tokens_in(BLOCK * SHAPE.token_bytes) == 0


@pytest.mark.parametrize(
    ("device", "sharing", "kept"),
    [("cpu", 1, torch.float32), ("cpu", 16, torch.bfloat16), ("cuda", 1, torch.bfloat16)],
)
def test_few_heads_to_a_key_are_kept_in_fp32_on_the_cpu(device: str, sharing: int, kept: torch.dtype) -> None:
    assert kv_dtype(torch.bfloat16, sharing, torch.device(device)) is kept
