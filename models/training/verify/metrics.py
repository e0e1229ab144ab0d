"""Retrieval metrics, and whether one model is certainly better than another, in numpy."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...encoders.base import Vectors

TOP = 10
"""Documents that count in a ranking."""
_SCORES_AT_ONCE = 1 << 24
"""Scores in memory at the same time: 64 MiB."""

Values = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ranking:
    """The ranking of each query's relevant documents. ndcg, reciprocal_rank: (N,), of the first ten documents;
    ranks (N,): of the first relevant document among all, from 1."""

    ndcg: Values
    reciprocal_rank: Values
    ranks: Indices

    @property
    def mean_ndcg(self) -> float:
        return float(self.ndcg.mean())

    @property
    def mean_reciprocal_rank(self) -> float:
        return float(self.reciprocal_rank.mean())


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """The mean difference of new and live values.

    low, high: the 95 % interval of the resamples; p_worse: the share of resamples in which the new ones are worse.
    """

    difference: float
    low: float
    high: float
    p_worse: float


def rank_metrics(
    queries: Vectors,
    documents: Vectors,
    relevant: Sequence[Collection[int]],
    ignored: Sequence[Collection[int]] | None = None,
) -> Ranking:
    """Rank documents (M, D) for each query (N, D) by their dot product; for cosines give unit vectors.

    relevant: the documents of each query, at least one; ignored: those that do not count, such as the query's own text.
    At equal or NaN scores, irrelevant documents rank first: a model that gives all texts the same vector finds nothing.
    Raises ValueError where a query has no relevant document.
    """
    found: list[list[int]] = []
    for start, scores in _scores(queries, documents):
        for query, row in enumerate(scores, start):
            found.append(_ranks(row, sorted(relevant[query]), list(ignored[query]) if ignored else []))
    first = np.array([ranks[0] for ranks in found], dtype=np.int64)
    return Ranking(
        ndcg=np.array([_ndcg(ranks) for ranks in found], dtype=np.float64),
        reciprocal_rank=np.where(first <= TOP, 1 / np.maximum(first, 1), 0.0),
        ranks=first,
    )


def nearest(queries: Vectors, documents: Vectors, itself: bool = False) -> Indices:
    """The documents (M, D) of highest dot product for each query (N, D) -> (N, K), K at most ten, unordered.

    itself: the queries are the documents, and no query is its own neighbour.
    """
    count = min(TOP, len(documents) - itself)
    found = np.empty((len(queries), count), dtype=np.int64)
    for start, scores in _scores(queries, documents):
        if itself:
            rows = np.arange(len(scores))
            scores[rows, rows + start] = -np.inf
        found[start : start + len(scores)] = np.argpartition(-scores, count - 1, axis=1)[:, :count] if count else 0
    return found


def paired_bootstrap(new: Values, live: Values, seed: int, resamples: int = 10_000) -> Bootstrap:
    """Resample the queries with replacement, and compute the mean of new - live (N,).

    Raises ValueError if N is 0. Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    differences = new - live
    if not len(differences):
        raise ValueError("there is nothing to compare")
    random = np.random.default_rng(seed)
    at_once = max(1, _SCORES_AT_ONCE // 8 // len(differences))
    means = np.empty(resamples)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = random.integers(0, len(differences), (rows, len(differences)))
        means[start : start + rows] = differences[drawn].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Bootstrap(float(differences.mean()), float(low), float(high), float((means < 0).mean()))


def _scores(queries: Vectors, documents: Vectors) -> Iterator[tuple[int, Vectors]]:
    """The first query of each block and the block's scores (rows, M)."""
    rows = max(1, _SCORES_AT_ONCE // max(1, len(documents)))
    for start in range(0, len(queries), rows):
        yield start, queries[start : start + rows] @ documents.T


def _ranks(scores: Vectors, relevant: list[int], ignored: list[int]) -> list[int]:
    """The ranks, from 1 and ascending, of the relevant documents by scores (M,)."""
    if not relevant:
        raise ValueError("a query has no relevant document")
    own = np.sort(scores[relevant])[::-1]
    others = np.delete(scores, relevant + ignored)
    # not "others >= score", so that NaN ranks first
    return [place + 1 + int((~(others < score)).sum()) for place, score in enumerate(own)]


def _ndcg(ranks: list[int]) -> float:
    """Source: Jarvelin and Kekalainen, 2002, with relevance 0 or 1."""
    gain = sum(1 / np.log2(rank + 1) for rank in ranks if rank <= TOP)
    return float(gain / sum(1 / np.log2(place + 1) for place in range(1, min(TOP, len(ranks)) + 1)))
