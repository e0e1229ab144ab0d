"""What training lowers: sentence-transformers' losses, chosen and put together as the options say."""

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)

from ...catalogue import ModelSpec
from ..options import TrainingOptions

TRIPLET_MARGIN = 0.2
"""In cosine, by which the positive must be nearer than the negative."""
SHORTEST = 64


def make_loss(
    model: SentenceTransformer, options: TrainingOptions, micro_batch: int, lengths: tuple[int, ...] = ()
) -> torch.nn.Module:
    """A loss over the columns of a batch, anchor first. lengths: of the vectors, with the Matryoshka loss.

    InfoNCE (van den Oord et al., 2018) with the batch's other documents and all negatives, at a temperature of 0.05;
    where a micro-batch is smaller than a batch the same value in pieces (Gao et al., 2021, gradient cache).
    """
    loss: torch.nn.Module
    if options.loss == "triplet":
        loss = TripletLoss(model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=TRIPLET_MARGIN)
    elif micro_batch < options.batch_size:
        loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=micro_batch)
    else:
        loss = MultipleNegativesRankingLoss(model)
    return MatryoshkaLoss(model, loss, lengths) if options.matryoshka else loss


def vector_lengths(spec: ModelSpec, dimensions: int) -> tuple[int, ...]:
    """To which vectors are cut with the Matryoshka loss: as the entry says, else halves down to SHORTEST.

    Always with the full length; longest first.
    """
    halves = [dimensions]
    while halves[-1] >= 2 * SHORTEST:
        halves.append(halves[-1] // 2)
    return tuple(sorted({dimensions, *(spec.matryoshka or halves)}, reverse=True))
