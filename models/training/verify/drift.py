"""How far the vectors of a new version lie from those of the old one, and what that costs who stored old ones.

Owns the measures and the map between the two spaces, in numpy alone. Knows no model and no text. All vectors are unit
vectors, old and new ones of the same length.
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

    overlap: of the ten nearest texts of each text, the share that is the same in both spaces.
    """

    cosine_p5: float
    cosine_p50: float
    overlap: float
    edges: list[float]
    counts: list[int]


@dataclass(frozen=True, slots=True)
class Reach:
    """How well new queries find a kind of stored vectors. overlap: of the ten nearest, the share that new vectors of
    the same documents would give; ndcg: NDCG@10."""

    overlap: float
    ndcg: float


@dataclass(frozen=True, slots=True)
class ReindexCost:
    """What new queries find in documents that are stored anew, as they are, and mapped into the new space."""

    new: Reach
    old: Reach
    mapped: Reach


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
    """The orthogonal map (D, D) float32 that brings old vectors (N, D) nearest to the new ones: new ~ old @ map.

    Each axis counts as one more text that stayed where it was: a direction that no text shows is left alone. Source:
    Schonemann, A generalized solution of the orthogonal Procrustes problem, 1966.
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
    """Let new queries (N, D) search M documents by their new vectors, their old ones, and the old ones mapped.

    The map is fitted on one half of the documents and used on the other, both ways, so that none is mapped by what it
    taught itself. relevant, ignored: as rank_metrics takes them.
    """
    expected = nearest(new_queries, new_documents)

    def reach(documents: Vectors) -> Reach:
        found = rank_metrics(new_queries, documents, relevant, ignored)
        return Reach(_overlap(nearest(new_queries, documents), expected), found.mean_ndcg)

    return ReindexCost(
        reach(new_documents), reach(old_documents), reach(_mapped_by_halves(old_documents, new_documents))
    )


def _mapped_by_halves(old: Vectors, new: Vectors) -> Vectors:
    mapped = np.empty_like(old)
    for half in range(2):
        mapped[half::2] = old[half::2] @ fit_map(old[1 - half :: 2], new[1 - half :: 2])
    return mapped


def _overlap(left: Indices, right: Indices) -> float:
    """The mean share of the entries (K) of each row (N, K) that stand in the same row of the other; 1 for none."""
    if not left.size:
        return 1.0
    return float((left[:, :, None] == right[:, None, :]).any(axis=2).mean())
