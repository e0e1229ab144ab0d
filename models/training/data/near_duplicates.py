"""Texts that are nearly the same, by MinHash over runs of tokens (Broder, 1997) and banding.

Owns the measure and its tolerance. Linear in the number of texts.
"""

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

RUN = 4
"""Tokens of a run."""
ALIKE = 0.8
"""Share of runs in common (Jaccard, as estimated) at which two texts are clones."""
BANDS, ROWS = 20, 6
"""Of the hash functions: all of one band must agree for two texts to be compared. Misses 1 of 400 pairs at ALIKE."""
_PRIME = (1 << 31) - 1
_AT_ONCE = 4096
_TOKEN = re.compile(r"[^\W\d]\w*|\d[\w.]*|[^\w\s]")
_RANDOM = np.random.default_rng(20_240_229)
# A product of two numbers below the prime stays below 64 bits.
_FACTORS = _RANDOM.integers(1, _PRIME, BANDS * ROWS, dtype=np.uint64)
_OFFSETS = _RANDOM.integers(0, _PRIME, BANDS * ROWS, dtype=np.uint64)


def clone_groups(texts: Sequence[str]) -> list[int]:
    """For each text the number of its group: the index of the first text that it is a clone of, directly or not.

    Layout does not count. One other token makes another text of a short one, and a clone of one past 33 tokens.
    """
    first: dict[str, int] = {}
    parents = [first.setdefault(" ".join(_TOKEN.findall(text)), index) for index, text in enumerate(texts)]
    signatures = {index: _signature(tokens.split(" ")) for tokens, index in first.items()}
    for band in range(0, BANDS * ROWS, ROWS):
        buckets: dict[bytes, int] = {}
        for index, signature in signatures.items():
            other = buckets.setdefault(signature[band : band + ROWS].tobytes(), index)
            if other != index and np.mean(signatures[other] == signature) >= ALIKE:
                _join(parents, other, index)
    return [_root(parents, index) for index in range(len(texts))]


def _signature(tokens: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The least value of each hash function over a text's runs, (BANDS * ROWS,)."""
    # What stands before and behind lets the first and the last tokens count as much as the others.
    edge = [""] * (RUN - 1)
    padded = [*edge, *tokens, *edge]
    runs = {" ".join(padded[at : at + RUN]) for at in range(len(padded) - RUN + 1)}
    hashes = np.fromiter((crc32(run.encode("utf-8", "replace")) % _PRIME for run in runs), np.uint64, len(runs))
    least = [
        np.min((hashes[at : at + _AT_ONCE, None] * _FACTORS + _OFFSETS) % np.uint64(_PRIME), axis=0)
        for at in range(0, len(hashes), _AT_ONCE)
    ]
    return np.min(least, axis=0)  # type: ignore[no-any-return]


def _root(parents: list[int], index: int) -> int:
    while parents[index] != index:
        parents[index] = parents[parents[index]]
        index = parents[index]
    return index


def _join(parents: list[int], one: int, other: int) -> None:
    """The smaller index is the group's."""
    low, high = sorted((_root(parents, one), _root(parents, other)))
    parents[high] = low
