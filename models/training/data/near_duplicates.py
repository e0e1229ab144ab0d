"""Near-duplicate texts, by MinHash over shingles of tokens (Broder, 1997) and banding, in linear time."""

import re
from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

SHINGLE = 4
"""Tokens of a shingle."""
THRESHOLD = 0.8
"""The estimated Jaccard similarity of shingles from which two texts are near duplicates."""
BANDS, ROWS = 20, 6
"""Of the hash functions. Texts that agree in a whole band are compared; misses 1 of 400 pairs at THRESHOLD."""
_PRIME = (1 << 31) - 1
_AT_ONCE = 4096
_TOKEN = re.compile(r"[^\W\d]\w*|\d[\w.]*|[^\w\s]")
_RANDOM = np.random.default_rng(20_240_229)
# A product of two numbers below the prime stays below 64 bits.
_FACTORS = _RANDOM.integers(1, _PRIME, BANDS * ROWS, dtype=np.uint64)
_OFFSETS = _RANDOM.integers(0, _PRIME, BANDS * ROWS, dtype=np.uint64)


def duplicate_groups(texts: Sequence[str]) -> list[int]:
    """The group of each text: the index of the first text that it is a near duplicate of, directly or not.

    White space does not count. Texts that differ in one token are near duplicates from 33 tokens on.
    """
    first: dict[str, int] = {}
    parents = [first.setdefault(" ".join(_TOKEN.findall(text)), index) for index, text in enumerate(texts)]
    signatures = {index: _signature(tokens.split(" ")) for tokens, index in first.items()}
    for band in range(0, BANDS * ROWS, ROWS):
        buckets: dict[bytes, int] = {}
        for index, signature in signatures.items():
            other = buckets.setdefault(signature[band : band + ROWS].tobytes(), index)
            if other != index and np.mean(signatures[other] == signature) >= THRESHOLD:
                _join(parents, other, index)
    return [_root(parents, index) for index in range(len(texts))]


def _signature(tokens: Sequence[str]) -> npt.NDArray[np.uint64]:
    """The minimum of each hash function over a text's shingles, (BANDS * ROWS,)."""
    edge = [""] * (SHINGLE - 1)  # lets the first and the last tokens count as much as the others
    padded = [*edge, *tokens, *edge]
    shingles = {" ".join(padded[at : at + SHINGLE]) for at in range(len(padded) - SHINGLE + 1)}
    codes = (crc32(shingle.encode("utf-8", "replace")) % _PRIME for shingle in shingles)
    hashes = np.fromiter(codes, np.uint64, len(shingles))
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
    """Merge two groups; the smaller index becomes the root."""
    low, high = sorted((_root(parents, one), _root(parents, other)))
    parents[high] = low
