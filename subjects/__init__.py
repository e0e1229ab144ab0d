"""The wire contract of mlbus: what can be asked over NATS and what comes back. Light: no torch, no worker code."""

from .client import MLClient
from .embed import EmbedBatchReply, EmbedBatchRequest, EmbedReply, EmbedRequest
from .encodings import to_float32
from .errors import MLError
from .generate import (
    ChatMessage,
    GenerateBatchReply,
    GenerateBatchRequest,
    GenerateDone,
    GenerateReply,
    GenerateRequest,
    TokenFrame,
)
from .similarity import Ranked, SimilarityRanking, SimilarityRequest, SimilarityScore

__all__ = [
    "ChatMessage",
    "EmbedBatchReply",
    "EmbedBatchRequest",
    "EmbedReply",
    "EmbedRequest",
    "GenerateBatchReply",
    "GenerateBatchRequest",
    "GenerateDone",
    "GenerateReply",
    "GenerateRequest",
    "MLClient",
    "MLError",
    "Ranked",
    "SimilarityRanking",
    "SimilarityRequest",
    "SimilarityScore",
    "TokenFrame",
    "to_float32",
]
