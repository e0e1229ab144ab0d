"""The drift of vectors from the old version to the new one, and what it costs users who stored old vectors.

All vectors are unit vectors; old and new ones have the same dimensions.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ...encoders.base import Vectors, cosine_rows
from .metrics import Indices, nearest, rank_metrics

BINS = 40


@dataclass(frozen=True, slots=True)
class Drift:
    """Cosines of the old and the new vector of the same text: percentiles and histogram (edges B + 1, counts B).

    overlap: the share of each text's ten nearest texts that is the same in both spaces.
    """

    cosine_p5: float
    cosine_p50: float
    overlap: float
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True)
class SearchQuality:
    """How well new queries find stored vectors. overlap: the share of the ten nearest that is the same as with new
    vectors; ndcg: NDCG@10."""

    overlap: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class ReindexCost:
    """Search with new queries in documents embedded again, in old vectors, and in old ones mapped to the new space."""

    new: SearchQuality
    old: SearchQuality
    mapped: SearchQuality


def drift(old: Vectors, new: Vectors) -> Drift:
    """Compare the vectors (N, D) of the same N texts, N at least 1, in two spaces."""
    cosines = np.clip(cosine_rows(old, new), -1, 1)
    low, median = np.percentile(cosines, (5, 50))
    edges = np.linspace(min(0.0, float(cosines.min())), 1, BINS + 1)
    counts, _ = np.histogram(cosines, edges)
    return Drift(
        float(low),
        float(median),
        _overlap(nearest(old, old, True), nearest(new, new, True)),
        edges.tolist(),
        counts.tolist(),
    )


def fit_map(old: Vectors, new: Vectors) -> Vectors:
    """The orthogonal map (D, D) float32 from old vectors (N, D) to the new ones: new ~ old @ map.

    Each axis counts as one more text that did not move, so that directions without texts stay. Source: Schonemann, A
    generalized solution of the orthogonal Procrustes problem, 1966.
    """
    together = old.astype(np.float64).T @ new.astype(np.float64)
    left, _, right = np.linalg.svd(together + np.eye(len(together)))
    fitted: Vectors = (left @ right).astype(np.float32)
    return fitted


def reindex_cost(
    old_documents: Vectors,
    new_documents: Vectors,
    new_queries: Vectors,
    relevant: Sequence[Collection[int]],
    ignored: Sequence[Collection[int]] | None = None,
) -> ReindexCost:
    """Search M documents with new queries (N, D): by their new vectors, their old ones, and the old ones mapped.

    The map is cross-fitted: on each half of the documents for the other one. relevant, ignored: see rank_metrics.
    """
    expected = nearest(new_queries, new_documents)

    def search(documents: Vectors) -> SearchQuality:
        ranking = rank_metrics(new_queries, documents, relevant, ignored)
        return SearchQuality(_overlap(nearest(new_queries, documents), expected), ranking.mean_ndcg)

    mapped = _mapped_by_halves(old_documents, new_documents)
    return ReindexCost(search(new_documents), search(old_documents), search(mapped))


def _mapped_by_halves(old: Vectors, new: Vectors) -> Vectors:
    mapped = np.empty_like(old)
    for half in range(2):
        mapped[half::2] = old[half::2] @ fit_map(old[1 - half :: 2], new[1 - half :: 2])
    return mapped


def _overlap(left: Indices, right: Indices) -> float:
    """The mean share of the entries (K) of each row (N, K) that are in the same row of the other; 1 if N is 0."""
    if not left.size:
        return 1.0
    return float((left[:, :, None] == right[:, None, :]).any(axis=2).mean())
