"""Texts as a model is trained on them: the tokens that serving would make of them, behind the right prompt, padded.

Knows which prompt an anchor and a document get. Knows nothing of pairs or batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch.nn.utils.rnn import pad_sequence

from ...catalogue import ModelSpec
from ...encoders.base import Tokens
from ...encoders.modules import text_tokenizer, text_transformer
from ...encoders.tokenise import TextTokenizer

MAX_TOKENS = 256
"""Of a text, where nobody says: code says what it is about in its first lines."""
ANCHOR_PROMPTS = ("query", "retrieval.query", "search_query")
DOCUMENT_PROMPTS = ("document", "passage", "retrieval.passage", "search_document", "corpus")


@dataclass(frozen=True, slots=True)
class TrainingTexts:
    """Makes tokens and tensors of texts. Where a model has no prompt of that kind, its default one applies, if any."""

    tokenizer: TextTokenizer
    anchor_prompt: str
    document_prompt: str
    pad_id: int

    @classmethod
    def of(cls, spec: ModelSpec, model: SentenceTransformer, max_tokens: int | None) -> "TrainingTexts":
        """For a model as `read_sentence_transformer` gives it. max_tokens: of a text; None: MAX_TOKENS."""
        transformer = text_transformer(spec, model)
        limits = (max_tokens or MAX_TOKENS, model.max_seq_length, spec.max_tokens)
        limit = min(limit for limit in limits if limit)
        prompts = {name: text or "" for name, text in model.prompts.items()} | spec.prompts
        default = prompts.get(spec.default_prompt or model.default_prompt_name or "", "")
        anchor, document = (
            next((prompts[name] for name in names if prompts.get(name)), default)
            for names in (ANCHOR_PROMPTS, DOCUMENT_PROMPTS)
        )
        own = text_tokenizer(transformer, int(limit))
        return cls(own, anchor, document, int(transformer.tokenizer.pad_token_id or 0))

    def anchors(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of what is searched with, of those that are too long the first ones."""
        return self._tokens(texts, self.anchor_prompt)

    def documents(self, texts: Sequence[str]) -> list[Tokens]:
        """Token ids of what is to be found."""
        return self._tokens(texts, self.document_prompt)

    def features(self, rows: Sequence[Tokens]) -> dict[str, Any]:
        """Token ids and mask (B, T) int64, padded on the right, where a mask makes every kind of pooling right.

        prompt_length: of all rows, for models whose pooling leaves the prompt out.
        """
        ids = [torch.tensor(row.ids) for row in rows]
        mask = [torch.ones_like(row) for row in ids]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_id),
            "attention_mask": pad_sequence(mask, batch_first=True),
            "prompt_length": rows[0].prompt_tokens,
        }

    def _tokens(self, texts: Sequence[str], prompt: str) -> list[Tokens]:
        return [each for each in self.tokenizer(texts, prompt, "end") if isinstance(each, Tokens)]
