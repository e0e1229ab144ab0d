"""The wire contract of mlbus: what can be asked over NATS and what comes back. Light: no torch, no worker code."""

from .client import MLClient
from .embed import EmbedBatchReply, EmbedBatchRequest, EmbedReply, EmbedRequest
from .encodings import to_float32
from .errors import MLError
from .similarity import Ranked, SimilarityRanking, SimilarityRequest, SimilarityScore

__all__ = [
    "EmbedBatchReply",
    "EmbedBatchRequest",
    "EmbedReply",
    "EmbedRequest",
    "MLClient",
    "MLError",
    "Ranked",
    "SimilarityRanking",
    "SimilarityRequest",
    "SimilarityScore",
    "to_float32",
]
