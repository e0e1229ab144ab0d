"""Texts as a model in training reads them: prompts, tokens and padding as in serving; and the score of its vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.utils.rnn import pad_sequence

from ...catalogue import ModelSpec
from ...encoders.base import Tokens, Vectors, finish
from ...encoders.modules import text_tokenizer, text_transformer
from ...encoders.sentence_encoder import named_prompts
from ...encoders.tokenise import TextTokenizer
from ..data.held_out import HeldOut
from ..encoding import ANCHOR_PROMPTS, DOCUMENT_PROMPTS
from ..verify.metrics import rank_metrics

MAX_TOKENS = 256
"""Default limit of a text: the first lines of code say what it is about."""

Evaluate: TypeAlias = Callable[[SentenceTransformer], dict[str, float]]


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """Tokenizes texts, with the prompts of anchors and documents; a model without these uses its default prompt."""

    tokenizer: TextTokenizer
    anchor_prompt: str
    document_prompt: str
    pad_id: int

    @classmethod
    def of(cls, spec: ModelSpec, model: SentenceTransformer, max_tokens: int | None) -> "TrainingTexts":
        """For a model that `read_sentence_transformer` returned. max_tokens: of a text; None: MAX_TOKENS."""
        transformer = text_transformer(spec, model)
        limits = (max_tokens or MAX_TOKENS, model.max_seq_length, spec.max_tokens)
        limit = min(limit for limit in limits if limit)
        prompts = named_prompts(spec, model)
        default = prompts.get(spec.default_prompt or model.default_prompt_name or "", "")
        anchor, document = (
            next((prompts[name] for name in names if prompts.get(name)), default)
            for names in (ANCHOR_PROMPTS, DOCUMENT_PROMPTS)
        )
        tokenizer = text_tokenizer(transformer, int(limit))
        return cls(tokenizer, anchor, document, int(transformer.tokenizer.pad_token_id or 0))

    def anchors(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of queries, truncated to the limit."""
        return self._tokens(texts, self.anchor_prompt)

    def documents(self, texts: Sequence[str]) -> list[Tokens]:
        """The tokens of documents, truncated to the limit."""
        return self._tokens(texts, self.document_prompt)

    def features(self, rows: Sequence[Tokens]) -> dict[str, Any]:
        """Token ids and mask (B, T) int64, padded on the right.

        prompt_length: of all rows, for models whose pooling leaves the prompt out.
        """
        ids = [torch.tensor(row.ids) for row in rows]
        mask = [torch.ones_like(row) for row in ids]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence(mask, batch_first=True),
            "prompt_length": rows[0].prompt_tokens,
        }

    def vectors(self, model: SentenceTransformer, rows: Sequence[Tokens], batch_size: int) -> Vectors:
        """Unit vectors (N, D), in order."""
        order = sorted(range(len(rows)), key=lambda each: -len(rows[each]))
        found = []
        with torch.no_grad():
            for start in range(0, len(order), batch_size):
                features = self.features([rows[index] for index in order[start : start + batch_size]])
                on_device = {
                    name: value.to(model.device) if isinstance(value, torch.Tensor) else value
                    for name, value in features.items()
                }
                found.append(model(on_device)["sentence_embedding"].float().cpu().numpy())
        vectors = np.empty((len(rows), found[0].shape[1]), dtype=np.float32)
        vectors[order] = np.concatenate(found)
        return finish(vectors, True)

    def _tokens(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        return [each for each in self.tokenizer(texts, prompt, "end") if isinstance(each, Tokens)]


def evaluator(held: HeldOut, texts: TrainingTexts, batch_size: int) -> Evaluate:
    """A function that computes a model's NDCG@10 and MRR@10 on held-out pairs; no scores where there are none."""
    queries, documents = texts.anchors(held.queries), texts.documents(held.documents)

    def evaluate(model: SentenceTransformer) -> dict[str, float]:
        if not queries:
            return {}
        model.eval()
        found, stored = (texts.vectors(model, rows, batch_size) for rows in (queries, documents))
        ranking = rank_metrics(found, stored, held.relevant, held.ignored)
        return {"ndcg@10": ranking.mean_ndcg, "mrr@10": ranking.mean_reciprocal_rank}

    return evaluate
