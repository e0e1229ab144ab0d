"""Which prompts' beginnings are in the cache: found by blocks of tokens, kept while there is room.

Pure bookkeeping over sequences; copies nothing. An engine has one, so it never outlives the weights.
"""

from collections.abc import Sequence as Tokens

from .kv_cache import BLOCK
from .sequence import Sequence


class PrefixCache:
    """Sequences by the names of their full blocks: those that run, and ended ones whose runs are kept."""

    def __init__(self) -> None:
        self._known: dict[Sequence, None] = {}
        self._holders: dict[int, Sequence] = {}
        self._kept: dict[Sequence, None] = {}

    @property
    def kept_tokens(self) -> int:
        """Tokens of the cache that ended sequences take."""
        return sum(sequence.run.capacity for sequence in self._kept if sequence.run)

    def note(self, sequence: Sequence) -> None:
        """Let others find what of a sequence has been computed."""
        while (known := len(sequence.keys) * BLOCK) + BLOCK <= sequence.computed:
            self._known[sequence] = None
            before = sequence.keys[-1] if sequence.keys else 0
            sequence.keys.append(_name(before, sequence.tokens[known : known + BLOCK]))
            self._holders.setdefault(sequence.keys[-1], sequence)

    def longest(self, tokens: Tokens[int]) -> tuple[Sequence, int] | None:
        """Whose cache begins as these tokens do, and for how long; the last token is left to be computed."""
        found, name = None, 0
        for at in range(0, len(tokens) - BLOCK + 1, BLOCK):
            name = _name(name, tokens[at : at + BLOCK])
            if (holder := self._holders.get(name)) is None:
                break
            found = holder
        if found is None:
            return None
        self._touch(found)
        alike = common(found.tokens, tokens, min(found.computed, len(tokens) - 1))
        return (found, alike) if alike else None

    def keep(self, sequence: Sequence) -> bool:
        """Keep the run of a sequence that has ended, as the one used last -> whether it has what no other one has."""
        if any(self._holders.setdefault(key, sequence) is sequence for key in sequence.keys):
            self._kept[sequence] = None
        return sequence in self._kept

    def oldest(self) -> Sequence | None:
        """The kept sequence that has not been used for longest, which is kept no more; None if there is none."""
        sequence = next(iter(self._kept), None)
        if sequence is not None:
            self.forget(sequence)
        return sequence

    def forget(self, sequence: Sequence) -> None:
        """Nobody is to find this sequence any more; others that begin alike are found instead."""
        self._kept.pop(sequence, None)
        if sequence not in self._known:
            return
        del self._known[sequence]
        for key in sequence.keys:
            if self._holders.get(key) is sequence:
                del self._holders[key]
        sequence.keys.clear()
        for other in self._known:
            for key in other.keys:
                self._holders.setdefault(key, other)

    def _touch(self, sequence: Sequence) -> None:
        if sequence in self._kept:
            del self._kept[sequence]
            self._kept[sequence] = None


def first_block(tokens: Tokens[int]) -> int | None:
    """The name of the first block, None where there is none."""
    return _name(0, tokens[:BLOCK]) if len(tokens) > BLOCK else None


def _name(before: int, block: Tokens[int]) -> int:
    return hash((before, *block))


def common(left: Tokens[int], right: Tokens[int], limit: int) -> int:
    """How many of the first tokens are the same: names may collide."""
    return next((at for at in range(limit) if left[at] != right[at]), limit)
