"""`ml.similarity`: decode, embed both sides, compare."""

from collections.abc import Sequence

import numpy as np

from models.encoders.base import Vectors
from subjects import names
from subjects.embed import Ranked, SimilarityRanking, SimilarityReply, SimilarityRequest, SimilarityScore, Usage

from ..endpoint.call import Call
from ..endpoint.route import Handler
from ..residency.manager import ModelManager
from .embed import params_of


def cosines(left: Vectors, right: Sequence[Vectors]) -> Vectors:
    """Cosine of one unit vector (D,) with each of N unit vectors (D,) -> (N,), -1 to 1."""
    scores: Vectors = np.clip(np.stack(right) @ left, -1.0, 1.0)
    return scores


class SimilarityHandlers:
    def __init__(self, manager: ModelManager) -> None:
        self._manager = manager

    def handlers(self) -> dict[str, Handler]:
        return {names.SIMILARITY: Handler(self.similarity)}

    async def similarity(self, request: SimilarityRequest, call: Call) -> SimilarityReply:
        texts = [text for text in (request.a, request.b, request.query) if text is not None]
        texts += request.candidates or []
        async with self._manager.embedder(request.model) as embedder:
            encoder = embedder.encoder
            part = await embedder.embed_all(texts, params_of(request, call, len(texts)))
        scores = cosines(part.vectors[0], part.vectors[1:])
        truncated = bool(part.truncated)
        usage = Usage(tokens=part.tokens)
        if request.candidates is None:
            return SimilarityScore(
                model=encoder.model, version=encoder.version, usage=usage, score=float(scores[0]), truncated=truncated
            )
        best = np.argsort(-scores, kind="stable")[: request.top_k]
        results = [Ranked(index=int(i), score=float(scores[i])) for i in best]
        return SimilarityRanking(
            model=encoder.model, version=encoder.version, usage=usage, results=results, truncated=truncated
        )
