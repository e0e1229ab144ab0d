"""The torch encoder: any transformer of sentence-transformers, fed with our own batches, packed or padded.

Owns the forward pass from token ids to hidden states. Built on the module list of sentence-transformers, so that a
model is pooled as its authors meant.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ..catalogue import ModelSpec, Quantization
from ..errors import ModelUnavailable
from ..quantization.quantize import quantize
from .base import Tokens
from .modules import asked_length, text_tokenizer, text_transformer
from .packed import packed_features, unpacked, use_packed_attention
from .sentence_encoder import SentenceEncoder, check_facts

LONGEST_BELIEVED = 1_000_000  # tokenisers without a maximum length state an astronomical one


class TorchEncoder(SentenceEncoder):
    """An Encoder over a transformer and what follows it; quantised if asked."""

    def __init__(
        self,
        spec: ModelSpec,
        digest: str,
        source: SentenceTransformer,
        device: torch.device,
        quantization: Quantization | None = None,
    ) -> None:
        check_facts(spec, source)
        transformer = text_transformer(spec, source)
        tokenizer = text_tokenizer(transformer, _max_tokens(spec, source))
        self._padding_left = transformer.tokenizer.padding_side == "left"
        self._pad_id = int(transformer.tokenizer.pad_token_id or 0)
        dtype = transformer.auto_model.dtype
        if quantization is not None:
            quantize(transformer.auto_model, quantization, device)
        super().__init__(spec, digest, source, device, dtype, quantization, tokenizer)
        self._padded_attention = transformer.auto_model.config._attn_implementation
        self.packed = False

    def pack(self) -> None:
        """Run batches without padding from now on. Raises whatever a model raises that cannot."""
        use_packed_attention(self._first.auto_model)
        self.packed = True

    def pad(self) -> None:
        """Run padded batches again."""
        self._first.auto_model.set_attn_implementation(self._padded_attention)
        self.packed = False

    def _read(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        features = self._packed(batch) if self.packed else self._first(self._padded(batch))
        output = self._first.module_output_name
        return {**features, output: features[output].float()}

    def _packed(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """What the transformer makes of a batch without padding, as the modules behind it expect it."""
        features = self._first(packed_features(batch, self._pad_id, self.device))
        output = self._first.module_output_name
        hidden, mask = unpacked(features[output], features.pop("packed_lengths"), len(batch))
        return {output: hidden, "attention_mask": mask}

    def _padded(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        """Token ids (B, T) int64 and, where any row is padded, their mask and positions (B, T) int64."""
        lengths = np.array([len(tokens) for tokens in batch])
        longest = int(lengths.max())
        starts = longest - lengths if self._padding_left else np.zeros_like(lengths)
        ids = np.full((len(batch), longest), self._pad_id, dtype=np.int64)
        for row, start, tokens in zip(ids, starts, batch, strict=True):
            row[start : start + len(tokens)] = tokens.ids
        features = {"input_ids": ids}
        if int(lengths.min()) < longest:
            positions = np.arange(longest)[None, :] - starts[:, None]
            features["attention_mask"] = ((positions >= 0) & (positions < lengths[:, None])).astype(np.int64)
            if self._padding_left:
                features["position_ids"] = positions.clip(min=0)
        return {name: torch.from_numpy(value).to(self.device) for name, value in features.items()}


def _max_tokens(spec: ModelSpec, source: SentenceTransformer) -> int:
    asked = asked_length(text_transformer(spec, source)) or source.max_seq_length
    limits = (asked, spec.max_tokens, _positions(source))
    stated = [limit for limit in limits if limit and limit < LONGEST_BELIEVED]
    if not stated:
        raise ModelUnavailable(spec.id, "it states no maximum length; give `max_tokens` in its entry")
    return min(stated)


def _positions(source: SentenceTransformer) -> int | None:
    """How many tokens a model has learned positions for; None where it has no table of them."""
    for name, module in source.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # Those with a padding position count behind it.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None
