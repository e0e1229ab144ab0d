"""The KV cache: one arena of fixed size, of which each sequence has a contiguous slice of tokens.

A slice is contiguous so that attention reads it in place; it grows, moves and is copied as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter

import torch

BLOCK = 32
"""Slices are multiples of this many tokens."""
ENOUGH_QUERIES_PER_KV_HEAD = 4
"""Query heads per key head from which attention in bf16 is not slower than in fp32 on the CPU."""
_START = attrgetter("start")


@dataclass(slots=True, eq=False)
class CacheSlice:
    """Tokens start ... start + capacity of the arena. Only its cache changes it."""

    start: int
    capacity: int


def kv_dtype(dtype: torch.dtype, queries_per_kv_head: int, device: torch.device) -> torch.dtype:
    """The dtype of keys and values for a model of `dtype` with `queries_per_kv_head` query heads per key head.

    On the CPU, bf16 attention of one token takes 2 to 5 times as long as fp32 if fewer share one.
    """
    return torch.float32 if device.type == "cpu" and queries_per_kv_head < ENOUGH_QUERIES_PER_KV_HEAD else dtype


@dataclass(frozen=True, slots=True)
class KVShape:
    """The keys and values of one token."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, in all layers."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize

    def tokens_in(self, budget_bytes: int) -> int:
        """How many tokens a cache of this size holds, without the block for padding at its end."""
        return max(0, (budget_bytes // self.token_bytes - BLOCK) // BLOCK * BLOCK)


class KVCache:
    """keys, values: for each layer (heads, tokens + BLOCK, head_dim). Padding tokens go to the last block, `sink`."""

    def __init__(self, shape: KVShape, tokens: int, device: torch.device) -> None:
        self.tokens = tokens
        self.sink = tokens
        size = (2, shape.layers, shape.heads, tokens + BLOCK, shape.head_dim)
        self._arena = torch.empty(size, dtype=shape.dtype, device=device)
        self.keys, self.values = (list(part.unbind(0)) for part in self._arena.unbind(0))
        self._slices: list[CacheSlice] = []

    @property
    def nbytes(self) -> int:
        return self._arena.nbytes

    @property
    def used_tokens(self) -> int:
        """Tokens of all slices together."""
        return sum(held.capacity for held in self._slices)

    def allocate(self, tokens: int) -> CacheSlice | None:
        """A slice for at least this many tokens; None if they are not free. Other slices may move."""
        capacity = blocks(tokens)
        if self.used_tokens + capacity > self.tokens:
            return None
        hole = next((at for at, size in self._holes() if size >= capacity), None)
        if hole is None:
            hole = self._compact()
        new = CacheSlice(hole, capacity)
        self._slices.append(new)
        self._slices.sort(key=_START)
        return new

    def grow(self, held: CacheSlice, tokens: int, filled: int) -> bool:
        """Make a slice hold this many tokens, keeping its first `filled` ones -> whether there was space."""
        capacity = blocks(tokens)
        if self._extend(held, capacity):
            return True
        larger = self.allocate(tokens)
        if larger is None:
            self._compact()  # which leaves a lone slice all the space there is
            return self._extend(held, capacity)
        self.copy(held, larger, filled)
        self.free(larger)
        held.start, held.capacity = larger.start, larger.capacity
        self._slices.sort(key=_START)
        return True

    def _extend(self, held: CacheSlice, capacity: int) -> bool:
        """Enlarge a slice in place -> whether there is space behind it."""
        behind = next((size for at, size in self._holes() if at == held.start + held.capacity), 0)
        if held.capacity + behind < capacity:
            return False
        held.capacity = max(held.capacity, capacity)
        return True

    def shrink(self, held: CacheSlice, tokens: int) -> None:
        """Free what a slice has beyond this many tokens."""
        held.capacity = min(held.capacity, blocks(tokens))

    def free(self, held: CacheSlice) -> None:
        self._slices.remove(held)

    def copy(self, source: CacheSlice, target: CacheSlice, tokens: int) -> None:
        self._move(source.start, target.start, tokens)

    def close(self) -> None:
        self.keys, self.values = [], []
        del self._arena

    def _holes(self) -> Iterator[tuple[int, int]]:
        """Start and size of the free parts, in order."""
        end = 0
        for held in self._slices:
            if held.start > end:
                yield end, held.start - end
            end = held.start + held.capacity
        if end < self.tokens:
            yield end, self.tokens - end

    def _compact(self) -> int:
        """Move all slices to the front -> where the free part begins."""
        end = 0
        for held in self._slices:
            if held.start != end:
                self._move(held.start, end, held.capacity)
            held.start = end
            end += held.capacity
        return end

    def _move(self, source: int, target: int, tokens: int) -> None:
        """Copy tokens within the arena, in parts that do not overlap; overlapping places only towards the front."""
        step = abs(source - target) or tokens
        for at in range(0, tokens, step or 1):
            size = min(step, tokens - at)
            part = self._arena[:, :, :, source + at : source + at + size]
            self._arena[:, :, :, target + at : target + at + size] = part


def blocks(tokens: int) -> int:
    """The least multiple of BLOCK that holds this many tokens."""
    return -(-tokens // BLOCK) * BLOCK
