"""The prefix cache: which beginnings of prompts have keys and values, found by blocks of tokens.

It is bookkeeping only; the scheduler copies and frees. Each engine has its own, so it never outlives the weights.
"""

from collections.abc import Sequence as Tokens

from .kv_cache import BLOCK
from .sequence import Sequence


class PrefixCache:
    """Sequences by the keys of their full blocks: running ones, and ended ones whose cache slices are kept."""

    def __init__(self) -> None:
        self._known: dict[Sequence, None] = {}
        self._holders: dict[int, Sequence] = {}
        self._kept: dict[Sequence, None] = {}

    @property
    def kept_tokens(self) -> int:
        """Cache tokens of ended sequences."""
        return sum(sequence.cache_slice.capacity for sequence in self._kept if sequence.cache_slice)

    def register(self, sequence: Sequence) -> None:
        """Add the blocks of a sequence that were computed since the last call."""
        while (known := len(sequence.block_keys) * BLOCK) + BLOCK <= sequence.computed:
            self._known[sequence] = None
            before = sequence.block_keys[-1] if sequence.block_keys else 0
            sequence.block_keys.append(_key(before, sequence.tokens[known : known + BLOCK]))
            self._holders.setdefault(sequence.block_keys[-1], sequence)

    def longest(self, tokens: Tokens[int]) -> tuple[Sequence, int] | None:
        """The sequence with the longest common prefix, and its length; the last token is left to be computed."""
        found, key = None, 0
        for at in range(0, len(tokens) - BLOCK + 1, BLOCK):
            key = _key(key, tokens[at : at + BLOCK])
            if (holder := self._holders.get(key)) is None:
                break
            found = holder
        if found is None:
            return None
        if found in self._kept:  # most recently used from now on
            del self._kept[found]
            self._kept[found] = None
        length = common_prefix(found.tokens, tokens, min(found.computed, len(tokens) - 1))
        return (found, length) if length else None

    def keep(self, sequence: Sequence) -> bool:
        """Keep an ended sequence as the most recently used -> whether it is kept: it has a block that no other has."""
        if any(self._holders.setdefault(key, sequence) is sequence for key in sequence.block_keys):
            self._kept[sequence] = None
        return sequence in self._kept

    def evict(self) -> Sequence | None:
        """Remove the least recently used of the kept sequences; None if there is none."""
        sequence = next(iter(self._kept), None)
        if sequence is not None:
            self.forget(sequence)
        return sequence

    def forget(self, sequence: Sequence) -> None:
        """Remove a sequence; others with the same blocks are found in its place."""
        self._kept.pop(sequence, None)
        if sequence not in self._known:
            return
        del self._known[sequence]
        for key in sequence.block_keys:
            if self._holders.get(key) is sequence:
                del self._holders[key]
        sequence.block_keys.clear()
        for other in self._known:
            for key in other.block_keys:
                self._holders.setdefault(key, other)


def first_block(tokens: Tokens[int]) -> int | None:
    """The key of the first block; None if there is none."""
    return _key(0, tokens[:BLOCK]) if len(tokens) > BLOCK else None


def common_prefix(left: Tokens[int], right: Tokens[int], limit: int) -> int:
    """Length of the common prefix, up to a limit. Checked token by token, since keys may collide."""
    return next((at for at in range(limit) if left[at] != right[at]), limit)


def _key(before: int, block: Tokens[int]) -> int:
    return hash((before, *block))
