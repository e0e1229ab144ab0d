"""How well a model in training finds the held-out pairs. Owns its batches; the task and the measure are elsewhere."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ...encoders.base import Tokens, Vectors, finish
from ..verify.held_out import HeldOut
from ..verify.metrics import rank_metrics
from .texts import TrainingTexts


class HeldOutTask:
    """The held-out pairs, ready for a model. rows: texts that are computed at once."""

    def __init__(self, held: HeldOut, texts: TrainingTexts, rows: int) -> None:
        self._held = held
        self._texts = texts
        self._rows = rows
        self._queries = texts.anchors(held.queries)
        self._documents = texts.documents(held.documents)

    def scores(self, model: SentenceTransformer) -> dict[str, float]:
        """NDCG@10 and MRR@10 by cosine; none where nothing is held out."""
        if not self._queries:
            return {}
        model.eval()
        queries, documents = (self._vectors(model, rows) for rows in (self._queries, self._documents))
        found = rank_metrics(queries, documents, self._held.relevant, self._held.ignored)
        return {"ndcg@10": found.mean_ndcg, "mrr@10": found.mean_reciprocal_rank}

    def _vectors(self, model: SentenceTransformer, rows: Sequence[Tokens]) -> Vectors:
        """Unit vectors (N, D), in order."""
        order = sorted(range(len(rows)), key=lambda each: -len(rows[each]))
        found = []
        with torch.no_grad():
            for start in range(0, len(order), self._rows):
                features: dict[str, Any] = self._texts.features([rows[i] for i in order[start : start + self._rows]])
                on_device = {name: _moved(value, model.device) for name, value in features.items()}
                found.append(model(on_device)["sentence_embedding"].float().cpu().numpy())
        vectors = np.empty((len(rows), found[0].shape[1]), dtype=np.float32)
        vectors[order] = np.concatenate(found)
        return finish(vectors, True)


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
