"""The cache of keys and values: one arena of a fixed size, in which each sequence has a run of tokens.

Owns the arena and who has which part of it. A run is contiguous, so that attention reads it in place; it grows, moves
and is copied as a whole. Knows no request and no model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

BLOCK = 32
"""Runs are multiples of so many tokens."""
FEW_SHARE = 4


@dataclass(slots=True, eq=False)
class CacheSlice:
    """A contiguous part of the arena: tokens start ... start + capacity. Moved by its cache alone."""

    start: int
    capacity: int


def kv_dtype(dtype: torch.dtype, sharing: int, device: torch.device) -> torch.dtype:
    """What keys and values are kept in, for a model of `dtype` with `sharing` heads to a key.

    On the CPU, bf16 attention of one token takes 2 to 5 times as long as fp32 where few heads share a key.
    """
    return torch.float32 if device.type == "cpu" and sharing < FEW_SHARE else dtype


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a model keeps of each token."""

    layers: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token, in all layers."""
        return 2 * self.layers * self.heads * self.head_dim * self.dtype.itemsize

    def tokens_in(self, budget_bytes: int) -> int:
        """How many tokens a cache of so many bytes holds, the one behind its end for padding left out."""
        return max(0, (budget_bytes // self.token_bytes - BLOCK) // BLOCK * BLOCK)


class KVCache:
    """keys, values: for each layer (heads, tokens + BLOCK, head_dim). The last block takes what nobody keeps."""

    def __init__(self, shape: KVShape, tokens: int, device: torch.device) -> None:
        self.tokens = tokens
        self.sink = tokens
        size = (2, shape.layers, shape.heads, tokens + BLOCK, shape.head_dim)
        self._arena = torch.empty(size, dtype=shape.dtype, device=device)
        self.keys, self.values = (list(part.unbind(0)) for part in self._arena.unbind(0))
        self._runs: list[CacheSlice] = []

    @property
    def nbytes(self) -> int:
        """Of the whole arena."""
        return self._arena.nbytes

    @property
    def used_tokens(self) -> int:
        """What the runs take together."""
        return sum(run.capacity for run in self._runs)

    def allocate(self, tokens: int) -> CacheSlice | None:
        """A run for at least so many tokens; None where there is no room, however the others lie."""
        capacity = blocks(tokens)
        if self.used_tokens + capacity > self.tokens:
            return None
        hole = next((at for at, size in self._holes() if size >= capacity), None)
        if hole is None:
            hole = self._compact()
        run = CacheSlice(hole, capacity)
        self._runs.append(run)
        self._runs.sort(key=_start)
        return run

    def grow(self, run: CacheSlice, tokens: int, filled: int) -> bool:
        """Make a run hold so many tokens, its first `filled` kept -> whether there was room, beside it or elsewhere.

        A run that is alone has all the room there is.
        """
        capacity = blocks(tokens)
        if self._extend(run, capacity):
            return True
        larger = self.allocate(tokens)
        if larger is None:
            self._compact()
            return self._extend(run, capacity)
        self.copy(run, larger, filled)
        run.start, larger.start = larger.start, run.start
        run.capacity, larger.capacity = larger.capacity, run.capacity
        self.free(larger)
        self._runs.sort(key=_start)
        return True

    def _extend(self, run: CacheSlice, capacity: int) -> bool:
        """Make a run larger where it lies -> whether there is room behind it."""
        behind = next((size for at, size in self._holes() if at == run.start + run.capacity), 0)
        if run.capacity + behind < capacity:
            return False
        run.capacity = max(run.capacity, capacity)
        return True

    def shrink(self, run: CacheSlice, tokens: int) -> None:
        """Give back what a run has beyond so many tokens."""
        run.capacity = min(run.capacity, blocks(tokens))

    def free(self, run: CacheSlice) -> None:
        """Give a run back."""
        self._runs.remove(run)

    def copy(self, source: CacheSlice, target: CacheSlice, tokens: int) -> None:
        """Copy the first tokens of one run to another."""
        self._move(source.start, target.start, tokens)

    def close(self) -> None:
        """Let go of the arena."""
        self.keys, self.values = [], []
        del self._arena

    def _holes(self) -> Iterator[tuple[int, int]]:
        """Start and size of what is free, in order."""
        end = 0
        for run in self._runs:
            if run.start > end:
                yield end, run.start - end
            end = run.start + run.capacity
        if end < self.tokens:
            yield end, self.tokens - end

    def _compact(self) -> int:
        """Move all runs to the front -> where the free part begins."""
        end = 0
        for run in self._runs:
            if run.start != end:
                self._move(run.start, end, run.capacity)
            run.start = end
            end += run.capacity
        return end

    def _move(self, source: int, target: int, tokens: int) -> None:
        """Copy tokens to elsewhere; towards the front, if the places overlap: in parts that do not."""
        step = abs(source - target) or tokens
        for at in range(0, tokens, step or 1):
            size = min(step, tokens - at)
            part = self._arena[:, :, :, source + at : source + at + size]
            self._arena[:, :, :, target + at : target + at + size] = part


def _start(run: CacheSlice) -> int:
    return run.start


def blocks(tokens: int) -> int:
    """The least multiple of BLOCK that holds so many tokens."""
    return -(-tokens // BLOCK) * BLOCK
