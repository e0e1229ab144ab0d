"""The wire contract of mlbus: what can be asked over NATS and what comes back.

Importing the package is cheap: a name is imported from its module when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .client import MLClient
    from .embed import (
        EmbedBatchReply,
        EmbedBatchRequest,
        EmbedReply,
        EmbedRequest,
        Ranked,
        SimilarityRanking,
        SimilarityRequest,
        SimilarityScore,
    )
    from .errors import MLError
    from .finetune import FinetuneOptions, FinetuneReply, FinetuneRequest, TrainingPair
    from .generate import (
        GenerateBatchReply,
        GenerateBatchRequest,
        GenerateDone,
        GenerateReply,
        GenerateRequest,
        TokenFrame,
    )
    from .generate_fields import ChatMessage, ContextFile
    from .jobs import Job, JobsListReply
    from .tokenize import DetokenizeReply, DetokenizeRequest, TokenizeReply, TokenizeRequest
    from .vectors import to_float32

__all__ = [
    "ChatMessage",
    "ContextFile",
    "DetokenizeReply",
    "DetokenizeRequest",
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
    "TokenizeReply",
    "TokenizeRequest",
    "TrainingPair",
    "to_float32",
]

if not TYPE_CHECKING:
    _MODULES = ("errors", "finetune", "generate", "generate_fields", "jobs", "embed", "tokenize", "vectors", "client")

    def __getattr__(name: str) -> Any:
        for module in _MODULES if name in __all__ else ():
            if hasattr(found := importlib.import_module(f".{module}", __name__), name):
                return getattr(found, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
