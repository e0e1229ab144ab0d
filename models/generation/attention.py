"""Attention over the KV cache, for transformers' models: the new tokens of many sequences lie end to end in one row.

A layer with a sliding window caches the keys and values of all tokens, and reads those of the window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from .kv_cache import KVCache

ATTENTION = "mlbus_cached"
UNSUPPORTED = ("s_aux", "position_bias", "head_mask")
"""Arguments of transformers' attention functions that are not supported here."""


@dataclass(frozen=True, slots=True)
class Segment:
    """`length` new tokens of a sequence, after `past` cached ones; its cache slice begins at `start`."""

    start: int
    past: int
    length: int


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """A layer's options. scaling: of the scores; None: 1 / sqrt(head width). window: how many tokens each token sees,
    itself included; None: all. softcap: bound of the scores, by tanh; None: unbounded.
    """

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """The part of the cache that `length` new tokens of a sequence see, from `start` to `end`.

    mask (length, end - start): which of it each token sees; None if that is just the causal triangle.
    """

    start: int
    end: int
    length: int
    mask: Tensor | None


class StepAttention:
    """Attention of one step. slots: where in the cache each new token goes."""

    def __init__(self, cache: KVCache, segments: Sequence[Segment], slots: Tensor) -> None:
        self._cache = cache
        self._segments = segments
        self._slots = slots
        self._spans: dict[int | None, list[Span]] = {}

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        """query (1, H, N, D), key and value (1, G, N, D) of N new tokens -> (1, N, H, D).

        Padding tokens at the end, which belong to no segment, give zeros.
        """
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_copy_(1, self._slots, key[0].to(keys.dtype))
        values.index_copy_(1, self._slots, value[0].to(keys.dtype))
        _, heads, tokens, _ = query.shape
        out = query.new_zeros(1, tokens, heads, value.shape[-1])
        query = query.to(keys.dtype)
        at = 0
        for span in self._spans_of(options.window):
            seen = keys[None, :, span.start : span.end], values[None, :, span.start : span.end]
            out[:, at : at + span.length] = _attended(query[:, :, at : at + span.length], *seen, options, span.mask)
            at += span.length
        return out

    def _spans_of(self, window: int | None) -> list[Span]:
        """The spans of all segments, the same in all layers with this window."""
        if window not in self._spans:
            self._spans[window] = [_span(segment, window, self._slots.device) for segment in self._segments]
        return self._spans[window]


def _span(segment: Segment, window: int | None, device: torch.device) -> Span:
    past = segment.past if window is None else min(segment.past, window - 1)
    end = segment.start + segment.past + segment.length
    return Span(end - segment.length - past, end, segment.length, _mask(segment.length, past, window, device))


def _mask(length: int, past: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which tokens each of `length` new tokens sees: (length, past + length) bool."""
    if length == 1 or (not past and (window is None or length <= window)):
        return None
    seen = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(past)
    return seen if window is None else seen.triu(past - window + 1)


def _attended(query: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions, mask: Tensor | None) -> Tensor:
    """query (1, H, n, D), keys and values (1, G, T, D) -> (1, n, H, D)."""
    if options.softcap is not None:
        return _softcapped(query, keys, values, options.scaling, options.softcap, mask)
    if query.shape[2] == 1:
        return _one(query, keys, values, options.scaling)
    return _many(query, keys, values, options.scaling, mask)


def _one(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> Tensor:
    """A single token sees all keys, so heads that share them count as tokens. query (1, H, 1, D) -> (1, 1, H, D)."""
    _, heads, _, width = query.shape
    grouped = query.reshape(1, keys.shape[1], heads // keys.shape[1], width)
    return scaled_dot_product_attention(grouped, keys, values, scale=scaling).reshape(1, 1, heads, -1)


def _many(query: Tensor, keys: Tensor, values: Tensor, scaling: float | None, mask: Tensor | None) -> Tensor:
    """query (1, H, n, D) -> (1, n, H, D)."""
    shared = query.shape[1] != keys.shape[1]
    attended = scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=shared
    )
    return attended.transpose(1, 2)


def _softcapped(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scaling: float | None,
    softcap: float,
    mask: Tensor | None,
) -> Tensor:
    """As `_many`, with bounded scores, which torch does not support; softmax in float32, as in transformers."""
    _, heads, length, width = query.shape
    _, groups, total, _ = keys.shape
    if mask is None:
        mask = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)
    scores = query.reshape(1, groups, -1, width) @ keys.transpose(-1, -2) * (scaling or width**-0.5)
    scores = softcap * torch.tanh(scores / softcap)
    scores = scores.view(1, heads, length, total).masked_fill(~mask, -torch.inf)
    shares = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    attended = shares.view(1, groups, -1, total) @ values
    return attended.view(1, heads, length, -1).transpose(1, 2)


def cached_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: int | None,
    scaling: float | None = None,
    softcap: float | None = None,
    *,
    step_attention: StepAttention | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """The attention function that layers call. attention_mask: the layer's window, from `_window`.

    Raises ValueError if the layer needs something unsupported, or does not pass step_attention on.
    """
    if step_attention is None:
        raise ValueError("its layers do not pass on what the engine's attention needs")
    if foreign := [name for name in UNSUPPORTED if arguments.get(name) is not None]:
        raise ValueError(f"the engine's attention does not compute {', '.join(foreign)}")
    if isinstance(attention_mask, Tensor):
        raise ValueError("its layers bring a mask of their own")
    options = AttentionOptions(scaling, attention_mask, softcap)
    return step_attention(int(module.layer_idx), query, key, value, options), None  # type: ignore[arg-type]


def use_cached_attention(model: PreTrainedModel) -> None:
    """Make a model call `cached_attention`. Raises whatever a model raises that cannot."""
    AttentionInterface.register(ATTENTION, cached_attention)
    AttentionMaskInterface.register(ATTENTION, _window)
    model.set_attn_implementation(ATTENTION)


def _window(
    *_: Any, local_size: int | None = None, use_vmap: bool = False, allow_is_bidirectional_skip: bool = False, **__: Any
) -> int | None:
    """In place of a mask, the layer's window: StepAttention makes the mask.

    transformers' masks decide about it, since some layers state a window and do not use it (olmoe).
    """
    if use_vmap or allow_is_bidirectional_skip:
        raise ValueError("its masks are neither causal nor windows")
    return local_size
