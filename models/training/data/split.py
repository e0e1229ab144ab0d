"""Which pairs are trained on and which are held out: by file, and without leakage.

Owns the split and what is left out for it. Knows no model.
"""

import hashlib
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..errors import NoPairs
from .near_duplicates import clone_groups
from .pairs import PairSource

HELD_OUT_SHARE, MOST_SHARE = 0.1, 0.3
"""Of the files; more than the one, up to the other, where it takes them to hold enough out."""
ENOUGH_HELD_OUT = 50
MOST_HELD_OUT = 1000
MIN_TRAINING_PAIRS = 16

Keys: TypeAlias = frozenset[str]
"""What a pair is split by: the files, or the symbols, in which its two texts stand."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The pairs of both parts, each with its split. by_file: whether no file is in both."""

    links: list[PairSource]
    by_file: bool


def without_clones(links: Sequence[PairSource]) -> list[PairSource]:
    """Without each pair whose texts are both clones of an earlier pair's, or of each other, which teaches nothing.

    A caller may give a text as its own positive.
    """
    groups = clone_groups([text for link in links for text in (link.pair.anchor, link.pair.positive)])
    first: dict[tuple[int, int], PairSource] = {}
    for anchor, positive, link in zip(groups[::2], groups[1::2], links, strict=True):
        if anchor != positive or link.pair.kind == "given":
            first.setdefault((anchor, positive), link)
    return list(first.values())


def split(links: Sequence[PairSource], seed: int) -> Parts:
    """Divide pairs into the two parts, without those that would give some of one away to the other.

    A file is held out or not by a hash of its path and the seed, so that a new file moves hardly any other. Where that
    leaves a part with too little, as with one file alone, symbols take the place of files; for pairs that were given,
    anchors. Raises NoPairs.
    """
    training: list[PairSource] = []
    held: list[PairSource] = []
    for by_file in (True, False):
        keys = [_files(link) if by_file else _symbols(link) for link in links]
        if len(frozenset().union(*keys)) < 2:
            continue
        held, training = _divided(links, keys, seed)
        if len(training) >= MIN_TRAINING_PAIRS and held:
            marked = [replace(link, pair=replace(link.pair, split="held_out")) for link in held]
            return Parts([*training, *marked], by_file)
    raise NoPairs(
        f"{len(training)} pairs to train on and {len(held)} held out to judge by, of {len(links)} that differ; "
        f"{MIN_TRAINING_PAIRS} and 1 are the least, with no text in both parts. "
        "Document more functions, or give pairs of your own"
    )


def _files(link: PairSource) -> Keys:
    return frozenset(name for name in (link.anchor_file, link.pair.file) if name)


def _symbols(link: PairSource) -> Keys:
    return frozenset(name for name in (link.anchor_name, link.name) if name) or frozenset({link.pair.anchor})


def _divided(links: Sequence[PairSource], keys: Sequence[Keys], seed: int) -> tuple[list[PairSource], list[PairSource]]:
    """What is held out, and what may be trained on beside it. What stands in both parts is in neither."""
    order = _order(keys, seed)
    never = len(order) + 1
    first = [min(order.get(key, never) for key in each) for each in keys]
    last = [max(order.get(key, never) for key in each) for each in keys]
    border = _border(sorted(last), len(order), sum(position(key, seed) < HELD_OUT_SHARE for key in order))
    held = _fewest([link for link, place in zip(links, last, strict=True) if place < border], seed)
    training = [link for link, place in zip(links, first, strict=True) if place >= border]
    return held, _apart(training, held)


def _order(keys: Sequence[Keys], seed: int) -> dict[str, int]:
    """In which order keys are held out; never one that more than half of the pairs need."""
    pairs = Counter(key for each in keys for key in each)
    names = sorted(pairs, key=lambda key: (position(key, seed), key))
    return {name: number for number, name in enumerate(name for name in names if 2 * pairs[name] <= len(keys))}


def _border(last: Sequence[int], count: int, few: int) -> int:
    """How many of the keys are held out. last: for each pair, in order, the number of keys that hold it out, less 1."""
    enough = max(1, min(ENOUGH_HELD_OUT, len(last) // 10))
    least, most = max(1, few), max(1, few, math.ceil(MOST_SHARE * count))
    return next((border for border in range(least, most) if bisect_left(last, border) >= enough), most)


def position(key: str, seed: int) -> float:
    """A number from 0 to 1 that a text and a seed alone decide on."""
    digest = hashlib.sha256(f"{seed}\0{key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _fewest(held: Sequence[PairSource], seed: int) -> list[PairSource]:
    """At most so many, from everywhere."""
    chosen = sorted(range(len(held)), key=lambda each: position(held[each].pair.anchor, seed))[:MOST_HELD_OUT]
    return [held[each] for each in sorted(chosen)]


def _apart(training: Sequence[PairSource], held: Sequence[PairSource]) -> list[PairSource]:
    """Those of which no text is a clone of one that is held out, without such negatives."""
    texts = dict.fromkeys(text for link in (*held, *training) for text in (*link.texts, *link.pair.negatives))
    groups = dict(zip(texts, clone_groups(list(texts)), strict=True))
    secret = {groups[text] for link in held for text in link.texts}
    kept = []
    for link in training:
        if secret.isdisjoint(groups[text] for text in link.texts):
            negatives = tuple(text for text in link.pair.negatives if groups[text] not in secret)
            kept.append(replace(link, pair=replace(link.pair, negatives=negatives)))
    return kept
