"""The split of pairs into training and held-out ones: by file, without leakage between the parts."""

import hashlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..errors import NoPairs
from .near_duplicates import duplicate_groups
from .pairs import PairSource

HELD_OUT_SHARE, MAX_SHARE = 0.1, 0.3
"""Of the files; the larger share if it is needed for ENOUGH_HELD_OUT pairs."""
ENOUGH_HELD_OUT = 50
MAX_HELD_OUT = 1000
MIN_TRAINING_PAIRS = 16

Keys: TypeAlias = frozenset[str]
"""The keys a pair is split by: the files, or the symbols, of its two texts."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The pairs of both parts, each marked with its split. by_file: whether no file is in both."""

    sources: list[PairSource]
    by_file: bool


def without_duplicates(sources: Sequence[PairSource]) -> list[PairSource]:
    """Drop pairs whose texts are near duplicates of an earlier pair's, or of each other, from which nothing is learned.

    A given pair may have its anchor as its positive.
    """
    groups = duplicate_groups([text for source in sources for text in (source.pair.anchor, source.pair.positive)])
    first: dict[tuple[int, int], PairSource] = {}
    for anchor, positive, source in zip(groups[::2], groups[1::2], sources, strict=True):
        if anchor != positive or source.pair.kind == "given":
            first.setdefault((anchor, positive), source)
    return list(first.values())


def split(sources: Sequence[PairSource], seed: int) -> Parts:
    """Split pairs into training and held-out ones; drop those that would leak between the parts.

    Files are assigned by a hash of their path and the seed, so that a new file hardly changes the assignment of others.
    If a part gets too few pairs, as with a single file, symbols are split instead; of given pairs, anchors. Raises
    NoPairs.
    """
    training: list[PairSource] = []
    held: list[PairSource] = []
    for by_file in (True, False):
        keys = [_files(source) if by_file else _symbols(source) for source in sources]
        if len(frozenset().union(*keys)) < 2:
            continue
        held, training = _divided(sources, keys, seed)
        if len(training) >= MIN_TRAINING_PAIRS and held:
            marked = [replace(source, pair=replace(source.pair, split="held_out")) for source in held]
            return Parts([*training, *marked], by_file)
    raise NoPairs(
        f"{len(training)} pairs to train on and {len(held)} held out to judge by, of {len(sources)} that differ; "
        f"{MIN_TRAINING_PAIRS} and 1 are the least, with no text in both parts. "
        "Document more functions, or give pairs of your own"
    )


def _files(source: PairSource) -> Keys:
    return frozenset(name for name in (source.anchor_file, source.pair.file) if name)


def _symbols(source: PairSource) -> Keys:
    return frozenset(name for name in (source.anchor_name, source.name) if name) or frozenset({source.pair.anchor})


def _divided(
    sources: Sequence[PairSource], keys: Sequence[Keys], seed: int
) -> tuple[list[PairSource], list[PairSource]]:
    """The held-out and the training pairs. A pair with keys of both parts is in neither."""
    order = _order(keys, seed)
    never = len(order) + 1
    first = [min(order.get(key, never) for key in each) for each in keys]
    last = [max(order.get(key, never) for key in each) for each in keys]
    border = _border(sorted(last), len(order), sum(position(key, seed) < HELD_OUT_SHARE for key in order))
    held = _sampled([source for source, place in zip(sources, last, strict=True) if place < border], seed)
    training = [source for source, place in zip(sources, first, strict=True) if place >= border]
    return held, _without_leaks(training, held)


def _order(keys: Sequence[Keys], seed: int) -> dict[str, int]:
    """The order in which keys are held out, without those of more than half of the pairs."""
    pairs = Counter(key for each in keys for key in each)
    names = sorted(pairs, key=lambda key: (position(key, seed), key))
    return {name: number for number, name in enumerate(name for name in names if 2 * pairs[name] <= len(keys))}


def _border(last: Sequence[int], count: int, few: int) -> int:
    """The number of keys to hold out. last: of each pair, sorted, the place of its last key in the order."""
    enough = max(1, min(ENOUGH_HELD_OUT, len(last) // 10))
    least, most = max(1, few), max(1, few, math.ceil(MAX_SHARE * count))
    return next((border for border in range(least, most) if bisect_left(last, border) >= enough), most)


def position(key: str, seed: int) -> float:
    """A hash of a text and a seed, as a number from 0 to 1."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _sampled(held: Sequence[PairSource], seed: int) -> list[PairSource]:
    """A random sample of at most MAX_HELD_OUT, in order."""
    chosen = sorted(range(len(held)), key=lambda each: position(held[each].pair.anchor, seed))[:MAX_HELD_OUT]
    return [held[each] for each in sorted(chosen)]


def _without_leaks(training: Sequence[PairSource], held: Sequence[PairSource]) -> list[PairSource]:
    """The training pairs without near duplicates of held-out texts; such negatives are removed."""
    texts = dict.fromkeys(text for source in (*held, *training) for text in (*source.texts, *source.pair.negatives))
    groups = dict(zip(texts, duplicate_groups(list(texts)), strict=True))
    leaking = {groups[text] for source in held for text in source.texts}
    kept = []
    for source in training:
        if leaking.isdisjoint(groups[text] for text in source.texts):
            negatives = tuple(text for text in source.pair.negatives if groups[text] not in leaking)
            kept.append(replace(source, pair=replace(source.pair, negatives=negatives)))
    return kept
