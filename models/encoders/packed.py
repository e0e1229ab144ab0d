"""Batches without padding: texts lie end to end in one row, and attention runs within each text alone.

Owns what that takes of a transformers model: an attention function of our own, positions that start anew with each
text, and the way back to one row a text. Whether a model gives the same vectors so, its self-test tells.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .base import Tokens

ATTENTION = "mlbus_packed"
ROUND_TO = 8
"""Batches come in few sizes so: for each new one oneDNN compiles its products, which takes 2 ms, and keeps them."""
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")
"""What a layer may ask of attention that is not computed here."""


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    packed_lengths: list[int],
    is_causal: bool | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each text to itself: query (1, H, N, D), key and value (1, H or fewer, N, D) -> (1, N, H, D).

    Raises ValueError where a layer asks for what is not computed here: a self-test with short texts would not tell.
    """
    if foreign := [name for name in UNSUPPORTED if asked.get(name) is not None]:
        raise ValueError(f"packed attention does not compute {', '.join(foreign)}")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    options: dict[str, Any] = {"is_causal": bool(causal), "scale": scaling}
    options["enable_gqa"] = query.shape[1] != key.shape[1]
    texts = zip(*(torch.split(part, packed_lengths, dim=2) for part in (query, key, value)), strict=True)
    attended = [scaled_dot_product_attention(q, k, v, **options) for q, k, v in texts]
    return torch.cat(attended, dim=2).transpose(1, 2), None


def use_packed_attention(model: PreTrainedModel) -> None:
    """Make a model run as `packed_features` feeds it. Raises whatever a model raises that cannot."""
    AttentionInterface.register(ATTENTION, packed_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    model.set_attn_implementation(ATTENTION)


def _no_mask(*_: Any, **__: Any) -> None:
    """Nothing is masked: no text sees another, and there is no padding to hide."""


def packed_features(batch: Sequence[Tokens], pad_id: int, device: str) -> dict[str, Any]:
    """Token ids and positions (1, N) int64 of all texts, N tokens together, and the length of each.

    N is rounded up to a multiple of ROUND_TO by one more text, of padding.
    """
    texts = [tokens.ids for tokens in batch]
    if missing := -sum(map(len, texts)) % ROUND_TO:
        texts.append([pad_id] * missing)
    lengths = [len(ids) for ids in texts]
    ids = torch.tensor([[i for ids in texts for i in ids]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return {"input_ids": ids.to(device), "position_ids": positions.to(device), "packed_lengths": lengths}


def unpacked(hidden: torch.Tensor, lengths: list[int], texts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (1, N, D) -> a row for each of the first so many texts (B, T, D), and the mask (B, T) int64.

    Behind a text's end its row is zeros.
    """
    rows = pad_sequence(list(torch.split(hidden[0], lengths))[:texts], batch_first=True)
    mask = torch.arange(rows.shape[1])[None] < torch.tensor(lengths[:texts])[:, None]
    return rows, mask.to(device=hidden.device, dtype=torch.int64)
