"""Attention of a step: the new tokens of many sequences lie end to end in one row, what came before in the cache.

Owns the attention function that transformers' models call, and what of a step it needs. Knows no scheduling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .kv import KVCache

ATTENTION = "mlbus_cached"
UNSUPPORTED = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")
"""What a layer may ask of attention that is not computed here."""


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of a sequence: `length` of them, behind `past` in the cache, whose run begins at `start`."""

    start: int
    past: int
    length: int


class StepAttention:
    """What attention must know of a step: where each token goes, and what each sequence sees."""

    def __init__(self, cache: KVCache, segments: Sequence[Segment], slots: torch.Tensor) -> None:
        self._cache = cache
        self._segments = segments
        self._slots = slots
        self._masks = [_mask(segment, slots.device) for segment in segments]

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """query (1, H, N, D), key and value (1, G, N, D) of N new tokens -> (1, N, H, D).

        Tokens of no segment, at the end, see nothing and give zeros.
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_copy_(1, self._slots, key[0].to(keys.dtype))
        values.index_copy_(1, self._slots, value[0].to(keys.dtype))
        _, heads, tokens, _ = query.shape
        out = query.new_zeros(1, tokens, heads, value.shape[-1])
        query = query.to(keys.dtype)
        at = 0
        for segment, mask in zip(self._segments, self._masks, strict=True):
            end = segment.start + segment.past + segment.length
            seen = keys[None, :, segment.start : end], values[None, :, segment.start : end]
            asked = query[:, :, at : at + segment.length]
            attended = _one(asked, *seen, scaling) if segment.length == 1 else _many(asked, *seen, scaling, mask)
            out[:, at : at + segment.length] = attended
            at += segment.length
        return out


def _one(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """One token sees all: the heads that share keys are as good as tokens. query (1, H, 1, D) -> (1, 1, H, D)."""
    _, heads, _, width = query.shape
    grouped = query.reshape(1, keys.shape[1], heads // keys.shape[1], width)
    return scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(1, 1, heads, -1)


def _many(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, mask: torch.Tensor | None
) -> torch.Tensor:
    """query (1, H, n, D) -> (1, n, H, D)."""
    shared = query.shape[1] != keys.shape[1]
    attended = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
    )
    return attended.transpose(1, 2)


def _mask(segment: Segment, device: torch.device) -> torch.Tensor | None:
    """What each of several tokens sees behind a past, (n, past + n); None where the causal triangle alone says it."""
    if segment.length == 1 or not segment.past:
        return None
    seen = torch.ones(segment.length, segment.past + segment.length, dtype=torch.bool, device=device)
    return seen.tril(segment.past)


def cached_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    step_attention: StepAttention | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """What a layer calls. Raises ValueError where it asks for what is not computed here, or passes too little on."""
    if step_attention is None:
        raise ValueError("its layers do not pass on what the engine's attention needs")
    if foreign := [name for name in UNSUPPORTED if asked.get(name) is not None]:
        raise ValueError(f"the engine's attention does not compute {', '.join(foreign)}")
    return step_attention(int(module.layer_idx), query, key, value, scaling), None  # type: ignore[arg-type]


def use_cached_attention(model: PreTrainedModel) -> None:
    """Make a model run as the engine feeds it. Raises whatever a model raises that cannot."""
    AttentionInterface.register(ATTENTION, cached_attention)
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    model.set_attn_implementation(ATTENTION)


def _no_mask(*_: Any, **__: Any) -> None:
    """What a token sees is the step's to say."""
