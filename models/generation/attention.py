"""Attention of a step: the new tokens of many sequences lie end to end in one row, what came before in the cache.

Owns the attention function that transformers' models call, and what of a step it needs. A layer whose tokens see a
window keeps the keys and values of all tokens, and reads those of the window. Knows no scheduling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .kv_cache import KVCache

ATTENTION = "mlbus_cached"
UNSUPPORTED = ("s_aux", "position_bias", "head_mask")
"""What a layer may ask of attention that is not computed here."""


@dataclass(frozen=True, slots=True)
class Segment:
    """New tokens of a sequence: `length` of them, behind `past` in the cache, whose run begins at `start`."""

    start: int
    past: int
    length: int


@dataclass(frozen=True, slots=True)
class Manner:
    """How a layer attends. scaling: of its scores, None: by the width of a head. window: tokens that each sees, itself
    the last, None: all before it. softcap: what scores are bent to stay below, None: they are not.
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """What `length` new tokens of a sequence see of the cache, from `start` to `end`.

    mask (length, end - start): what each of them sees; None where the causal triangle alone says it.
    """

    start: int
    end: int
    length: int
    mask: torch.Tensor | None


class StepAttention:
    """What attention must know of a step: where each token goes, and what each sequence sees."""

    def __init__(self, cache: KVCache, segments: Sequence[Segment], slots: torch.Tensor) -> None:
        self._cache = cache
        self._segments = segments
        self._slots = slots
        self._spans: dict[int | None, list[Span]] = {}

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, manner: Manner
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
        for span in self._seen(manner.window):
            seen = keys[None, :, span.start : span.end], values[None, :, span.start : span.end]
            out[:, at : at + span.length] = _attended(query[:, :, at : at + span.length], *seen, manner, span.mask)
            at += span.length
        return out

    def _seen(self, window: int | None) -> list[Span]:
        """What each segment sees: the same in all layers of one window."""
        if window not in self._spans:
            self._spans[window] = [_span(segment, window, self._slots.device) for segment in self._segments]
        return self._spans[window]


def _span(segment: Segment, window: int | None, device: torch.device) -> Span:
    past = segment.past if window is None else min(segment.past, window - 1)
    end = segment.start + segment.past + segment.length
    return Span(end - segment.length - past, end, segment.length, _mask(segment.length, past, window, device))


def _mask(length: int, past: int, window: int | None, device: torch.device) -> torch.Tensor | None:
    """What each of so many tokens behind a past sees, (length, past + length)."""
    if length == 1 or (not past and (window is None or length <= window)):
        return None
    seen = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)
    return seen if window is None else seen.triu(past - window + 1)


def _attended(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, manner: Manner, mask: torch.Tensor | None
) -> torch.Tensor:
    """query (1, H, n, D), keys and values (1, G, T, D) -> (1, n, H, D)."""
    if manner.softcap is not None:
        return _capped(query, keys, values, manner, mask)
    if query.shape[2] == 1:
        return _one(query, keys, values, manner.scaling)
    return _many(query, keys, values, manner.scaling, mask)


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


def _capped(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, manner: Manner, mask: torch.Tensor | None
) -> torch.Tensor:
    """As `_many`, with capped scores, which torch's own function has not; softmax in float32, as transformers does."""
    _, heads, length, width = query.shape
    _, groups, total, _ = keys.shape
    if mask is None:
        mask = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)
    scores = query.reshape(1, groups, -1, width) @ keys.transpose(-1, -2) * (manner.scaling or width**-0.5)
    if manner.softcap is not None:
        scores = manner.softcap * torch.tanh(scores / manner.softcap)
    scores = scores.view(1, heads, length, total).masked_fill(~mask, -torch.inf)
    shares = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    attended = shares.view(1, groups, -1, total) @ values
    return attended.view(1, heads, length, -1).transpose(1, 2)


def cached_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: int | None,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    step_attention: StepAttention | None = None,
    **asked: Any,
) -> tuple[torch.Tensor, None]:
    """What a layer calls; `attention_mask` is what stands in a mask's place, the layer's window.

    Raises ValueError where the layer asks for what is not computed here, or passes too little on.
    """
    if step_attention is None:
        raise ValueError("its layers do not pass on what the engine's attention needs")
    if foreign := [name for name in UNSUPPORTED if asked.get(name) is not None]:
        raise ValueError(f"the engine's attention does not compute {', '.join(foreign)}")
    if isinstance(attention_mask, torch.Tensor):
        raise ValueError("its layers bring a mask of their own")
    manner = Manner(scaling, attention_mask, softcap)
    return step_attention(int(module.layer_idx), query, key, value, manner), None  # type: ignore[arg-type]


def use_cached_attention(model: PreTrainedModel) -> None:
    """Make a model run as the engine feeds it. Raises whatever a model raises that cannot."""
    AttentionInterface.register(ATTENTION, cached_attention)
    AttentionMaskInterface.register(ATTENTION, _window)
    model.set_attn_implementation(ATTENTION)


def _window(
    *_: Any, local_size: int | None = None, use_vmap: bool = False, allow_is_bidirectional_skip: bool = False, **__: Any
) -> int | None:
    """In place of a mask, how many tokens each one sees; which, is the step's to say.

    transformers' masks decide, and not what layers name as their window, which some name and do not use (olmoe).
    """
    if use_vmap or allow_is_bidirectional_skip:
        raise ValueError("its masks are neither causal nor windows")
    return local_size
