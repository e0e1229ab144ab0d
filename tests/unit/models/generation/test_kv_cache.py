"""The KV cache: slices never overlap, keep their contents when they move, and can use all the space."""

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
    """A slice and what was written to it: a number of its own for each token."""

    slice: CacheSlice
    marks: list[float] = field(default_factory=list)


class Slices(RuleBasedStateMachine):
    """Operations on a cache in any order."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.cache = new_cache()
        self.alive: list[Held] = []
        self.next_mark = 0.0

    def write(self, held: Held, upto: int) -> None:
        while len(held.marks) < min(upto, held.slice.capacity):
            self.next_mark += 1
            at = held.slice.start + len(held.marks)
            for layer in (*self.cache.keys, *self.cache.values):
                layer[:, at] = self.next_mark
            held.marks.append(self.next_mark)

    @rule(target=held, tokens=st.integers(1, 5 * BLOCK), filled=st.integers(0, 5 * BLOCK))
    def allocate(self, tokens: int, filled: int):
        free = self.cache.tokens - self.cache.used_tokens
        new = self.cache.allocate(tokens)
        assert (new is None) == (blocks(tokens) > free)
        if new is None:
            return multiple()
        self.alive.append(held := Held(new))
        self.write(held, min(filled, tokens))
        return held

    @rule(held=held, more=st.integers(1, 3 * BLOCK))
    def grow(self, held: Held, more: int) -> None:
        if held not in self.alive:
            return
        wanted = held.slice.capacity + more
        others = self.cache.used_tokens - held.slice.capacity
        free = self.cache.tokens - others
        grown = self.cache.grow(held.slice, wanted, len(held.marks))
        assert grown <= (blocks(wanted) <= free)
        assert grown or others or blocks(wanted) > free
        assert grown or blocks(wanted) + self.cache.used_tokens > self.cache.tokens
        self.write(held, wanted)

    @rule(held=held, keep=st.integers(1, 2 * BLOCK))
    def shrink(self, held: Held, keep: int) -> None:
        if held in self.alive:
            self.cache.shrink(held.slice, keep)
            del held.marks[held.slice.capacity :]

    @rule(source=held, into=held)
    def copy(self, source: Held, into: Held) -> None:
        if source is into or source not in self.alive or into not in self.alive:
            return
        tokens = min(len(source.marks), into.slice.capacity)
        self.cache.copy(source.slice, into.slice, tokens)
        into.marks[:tokens] = source.marks[:tokens]

    @rule(held=held)
    def free(self, held: Held) -> None:
        if held in self.alive:
            self.alive.remove(held)
            self.cache.free(held.slice)

    @invariant()
    def nothing_is_lost(self) -> None:
        for held in self.alive:
            start = held.slice.start
            for layer in (*self.cache.keys, *self.cache.values):
                assert layer[0, start : start + len(held.marks), 0].tolist() == held.marks

    @invariant()
    def slices_do_not_overlap(self) -> None:
        slices = sorted((held.slice for held in self.alive), key=lambda each: each.start)
        ends = [0, *(each.start + each.capacity for each in slices)]
        assert all(each.start >= end for each, end in zip(slices, ends, strict=False))
        assert ends[-1] <= self.cache.tokens
        assert self.cache.used_tokens == sum(each.capacity for each in slices)


Slices.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSlices = Slices.TestCase


def test_a_cache_fills_its_budget() -> None:
    budget = 1_000_000
    tokens = SHAPE.tokens_in(budget)

    cache = new_cache(tokens)

    assert cache.nbytes == (tokens + BLOCK) * SHAPE.token_bytes
    assert budget - BLOCK * SHAPE.token_bytes < cache.nbytes <= budget


def test_a_budget_below_one_block_holds_nothing() -> None:
    assert SHAPE.tokens_in(BLOCK * SHAPE.token_bytes) == 0


@pytest.mark.parametrize(
    ("device", "queries_per_kv_head", "kept"),
    [("cpu", 1, torch.float32), ("cpu", 16, torch.bfloat16), ("cuda", 1, torch.bfloat16)],
)
def test_few_heads_to_a_key_are_kept_in_fp32_on_the_cpu(
    device: str, queries_per_kv_head: int, kept: torch.dtype
) -> None:
    assert kv_dtype(torch.bfloat16, queries_per_kv_head, torch.device(device)) is kept
