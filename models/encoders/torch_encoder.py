"""The torch encoder: any transformer of sentence-transformers, with our own batches, packed or padded.

A packed batch has no padding: texts lie end to end in one row, positions start anew with each text, and attention runs
within each text. The self-test at load checks that a model gives the same vectors this way.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ..catalogue import ModelSpec, Quantization
from ..errors import ModelUnavailable
from ..quantization.quantize import quantize
from .base import Tokens
from .modules import stated_length, text_tokenizer, text_transformer
from .sentence_encoder import SentenceEncoder
from .tokenise import TextTokenizer

LONGEST_BELIEVED = 1_000_000  # tokenisers without a maximum length state an astronomical one
ATTENTION = "mlbus_packed"
ROUND_TO = 8
"""Packed batches are padded to a multiple of this: for each new size oneDNN compiles its products, which takes 2 ms."""
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")
"""Arguments of transformers' attention functions that packed attention does not support."""


class TorchEncoder(SentenceEncoder):
    """An Encoder over a transformer and the modules behind it, optionally quantised."""

    packed = False

    def _prepare(
        self, spec: ModelSpec, source: SentenceTransformer, device: torch.device, quantization: Quantization | None
    ) -> tuple[torch.dtype, TextTokenizer]:
        transformer = text_transformer(spec, source)
        tokenizer = text_tokenizer(transformer, _max_tokens(spec, source))
        self._padding_left = transformer.tokenizer.padding_side == "left"
        self._pad_id = int(transformer.tokenizer.pad_token_id or 0)
        self._padded_attention = transformer.auto_model.config._attn_implementation
        dtype = transformer.auto_model.dtype
        if quantization is not None:
            quantize(transformer.auto_model, quantization, device)
        return dtype, tokenizer

    def pack(self) -> None:
        """Use packed batches from now on. Raises whatever a model raises that cannot."""
        use_packed_attention(self._first.auto_model)
        self.packed = True

    def pad(self) -> None:
        self._first.auto_model.set_attn_implementation(self._padded_attention)
        self.packed = False

    def _read(self, batch: Sequence[Tokens]) -> dict[str, Any]:
        features = self._packed(batch) if self.packed else self._first(self._padded(batch))
        output = self._first.module_output_name
        return {**features, output: features[output].float()}

    def _packed(self, batch: Sequence[Tokens]) -> dict[str, Any]:
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
    own = stated_length(text_transformer(spec, source)) or source.max_seq_length
    limits = (own, spec.max_tokens, _positions(source))
    believed = [limit for limit in limits if limit and limit < LONGEST_BELIEVED]
    if not believed:
        raise ModelUnavailable(spec.id, "it states no maximum length; give `max_tokens` in its entry")
    return min(believed)


def _positions(source: SentenceTransformer) -> int | None:
    """The size of a model's table of learned positions; None if it has none."""
    for name, module in source.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # Those with a padding position count behind it.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    packed_lengths: list[int],
    is_causal: bool | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Attention of each text to itself: query (1, H, N, D), key and value (1, H or fewer, N, D) -> (1, N, H, D).

    Raises ValueError if a layer needs something unsupported, which a self-test with short texts would not show.
    """
    if foreign := [name for name in UNSUPPORTED if arguments.get(name) is not None]:
        raise ValueError(f"packed attention does not compute {', '.join(foreign)}")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    options: dict[str, Any] = {"is_causal": bool(causal), "scale": scaling}
    options["enable_gqa"] = query.shape[1] != key.shape[1]
    texts = zip(*(torch.split(part, packed_lengths, dim=2) for part in (query, key, value)), strict=True)
    attended = [scaled_dot_product_attention(q, k, v, **options) for q, k, v in texts]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make a model call `packed_attention`. Raises whatever a model raises that cannot."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    model.set_attn_implementation(ATTENTION)


def _no_mask(*_: Any, **__: Any) -> None:
    """No mask: packed_attention keeps the texts apart."""


def packed_features(batch: Sequence[Tokens], pad_id: int, device: str) -> dict[str, Any]:
    """Token ids and positions (1, N) int64 of all texts end to end, and the length of each.

    A last text of padding rounds N up to a multiple of ROUND_TO.
    """
    texts = [tokens.ids for tokens in batch]
    if missing := -sum(map(len, texts)) % ROUND_TO:
        texts.append([pad_id] * missing)
    lengths = [len(ids) for ids in texts]
    ids = torch.tensor([[i for ids in texts for i in ids]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids.to(device), "position_ids": positions.to(device), "packed_lengths": lengths}


def unpacked(hidden: Tensor, lengths: list[int], texts: int) -> tuple[Tensor, Tensor]:
    """Hidden states (1, N, D) -> a row for each of the first `texts` texts (B, T, D), padded with zeros, and the mask
    (B, T) int64."""
    rows = pad_sequence(list(torch.split(hidden[0], lengths))[:texts], batch_first=True)
    mask = torch.arange(rows.shape[1])[None] < torch.tensor(lengths[:texts])[:, None]
    return rows, mask.to(device=hidden.device, dtype=torch.int64)
