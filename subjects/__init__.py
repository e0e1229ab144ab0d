"""The wire contract of mlbus: what can be asked over NATS and what comes back. Light: no torch, no worker code."""

from .client import MLClient
from .embed import EmbedBatchReply, EmbedBatchRequest, EmbedReply, EmbedRequest
from .encodings import to_float32
from .errors import MLError
from .finetune import FinetuneOptions, FinetuneReply, FinetuneRequest, TrainingPair
from .generate import (
    ChatMessage,
    GenerateBatchReply,
    GenerateBatchRequest,
    GenerateDone,
    GenerateReply,
    GenerateRequest,
    TokenFrame,
)
from .jobs import Job, JobsListReply
from .similarity import Ranked, SimilarityRanking, SimilarityRequest, SimilarityScore

__all__ = [
    "ChatMessage",
    "EmbedBatchReply",
    "EmbedBatchRequest",
    "EmbedReply",
    "EmbedRequest",
    "FinetuneOptions",
    "FinetuneReply",
    "FinetuneRequest",
    "GenerateBatchReply",
    "GenerateBatchRequest",
    "GenerateDone",
    "GenerateReply",
    "GenerateRequest",
    "Job",
    "JobsListReply",
    "MLClient",
    "MLError",
    "Ranked",
    "SimilarityRanking",
    "SimilarityRequest",
    "SimilarityScore",
    "TokenFrame",
    "TrainingPair",
    "to_float32",
]
