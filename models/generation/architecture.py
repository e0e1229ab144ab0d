"""Facts from a causal language model's config.json: whether the engine can run it, its context, its KV cache.

Whether the engine's attention fits is tried out without weights: transformers' modelling code runs on fake tensors,
which have shapes and no data, so it takes neither memory nor much time, whatever the model's size.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable, cause_text, first_line
from ..loading.reading import READ_LOCK, quiet
from .attention import AttentionOptions, use_cached_attention
from .kv_cache import KVShape

SERVED_LAYERS = {"full_attention", "sliding_attention"}
LONGEST_BELIEVED = 100_000_000
"""Some configurations state an astronomical context instead of none."""
TRIAL_TOKENS = 8
MAX_TRIAL_LAYERS = 1000
"""A configuration with more is not tried, which would take long: the loader compares it with its weights."""


def served_config(spec: ModelSpec, place: Path) -> PretrainedConfig:
    """The configuration of a model that the engine can run, from a folder or a file; never runs code found there.

    Raises ModelUnavailable.
    """
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # a foreign file can make the library raise anything
        reason = f"the config.json in {place} cannot be used ({cause_text(error)})"
        raise ModelUnavailable(spec.id, f"{reason}; choose another model") from error
    if fault := _unsupported(config):
        raise ModelUnavailable(
            spec.id, f"its architecture, {config.model_type}, is not served: {fault}; choose another model"
        )
    _require_short_rope(spec, config, context_of(spec, config))
    return config


def context_of(spec: ModelSpec, config: PretrainedConfig) -> int:
    """Context length, prompt plus completion: the model's positions, or the entry's `max_tokens` if fewer.

    Raises ModelUnavailable if neither is stated.
    """
    stated = [getattr(config.get_text_config(), "max_position_embeddings", None), spec.max_tokens]
    believed = [limit for limit in stated if limit and 0 < limit < LONGEST_BELIEVED]
    if not believed:
        raise ModelUnavailable(spec.id, "it states no longest context; give `max_tokens` in its entry")
    return min(believed)


def kv_shape(config: PretrainedConfig, dtype: torch.dtype) -> KVShape:
    """Keys and values of each token."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KVShape(config.num_hidden_layers, kv_heads, head_dim, dtype)


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights: tensors on torch's meta device."""
    with torch.device("meta"), quiet():
        network: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            deepcopy(config), trust_remote_code=False
        )
    drop_unused(network)
    return network


def drop_unused(network: PreTrainedModel) -> None:
    """Remove GPTBigCode's mask of context x context, which its attention does not read."""
    if network.config.model_type == "gpt_bigcode":
        network.base_model._buffers.pop("bias", None)


def _unsupported(config: PretrainedConfig) -> str | None:
    """Why the engine cannot run a model, as a clause; None if it can, as far as the configuration tells."""
    try:
        return _stated_fault(config) or _trial_fault(config, kv_shape(config, torch.float32))
    except Exception as error:  # the fields are missing, or differ between layers
        return f"it does not say what keys and values its layers have ({first_line(error)})"


def _stated_fault(config: PretrainedConfig) -> str | None:
    """What the configuration states that the engine does not support, as a clause."""
    networks: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in networks:
        return "it does not generate text from text alone"
    network, config = networks[type(config)], config.get_text_config()
    layer_types: Any = getattr(config, "layer_types", None) or ()

    def has(*fields: str) -> bool:
        return any(getattr(config, field, None) for field in fields)

    faults = {
        "it reads with an encoder, through cross attention": has("is_encoder_decoder", "add_cross_attention"),
        "it keeps a state instead of keys and values": network._is_stateful,
        "its attention cannot be exchanged for the engine's": not network._supports_attention_backend,
        "its scores for a token depend on later tokens": has("use_bidirectional_attention")
        or getattr(config, "is_causal", True) is False,
        "some of its layers see neither the whole text nor a window": has("attention_chunk_size")
        or not set(layer_types) <= SERVED_LAYERS,
        "its keys and values are not of one width": has("kv_lora_rank", "v_head_dim"),
        "some of its layers have no keys and values of their own": has("num_kv_shared_layers"),
        "its weights are quantised already, which is only done here": has("quantization_config"),
    }
    return next((reason for reason, applies in faults.items() if applies), None)


def _trial_fault(config: PretrainedConfig, shape: KVShape) -> str | None:
    """Why the model's layers cannot use the engine's attention, as a clause.

    A model whose code reads values, as for positions that depend on the text's length, is tried up to there.
    """
    if shape.layers > MAX_TRIAL_LAYERS:
        return None
    attention = _TrialAttention(shape)
    try:
        _run_trial(config, attention)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    except ValueError as error:
        return first_line(error)
    except Exception as error:  # an unsupported architecture may raise anything
        return f"it fails with {first_line(error)!r}"
    return None if sorted(attention.layers) == [*range(shape.layers)] else "not all of its layers keep keys and values"


class _TrialAttention:
    """Stands in for StepAttention, and records which layers call it."""

    def __init__(self, shape: KVShape) -> None:
        self._shape = shape.heads, shape.head_dim
        self.layers: list[int] = []

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor, options: AttentionOptions) -> Tensor:
        if any((part.shape[1], part.shape[3]) != self._shape for part in (key, value)):
            raise ValueError("its keys and values are not of one width")
        self.layers.append(layer)
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def _run_trial(config: PretrainedConfig, attention: _TrialAttention) -> None:
    with READ_LOCK, FakeTensorMode(), torch.no_grad(), quiet():
        network: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            deepcopy(config),
            dtype=torch.bfloat16,  # the one for which torch knows the shapes of all products
            trust_remote_code=False,
        )
        use_cached_attention(network)
        network.eval()(
            input_ids=torch.zeros(1, TRIAL_TOKENS, dtype=torch.long),
            position_ids=torch.arange(TRIAL_TOKENS)[None],
            use_cache=False,
            logits_to_keep=torch.tensor([TRIAL_TOKENS - 1]),
            step_attention=attention,
        )


def _require_short_rope(spec: ModelSpec, config: PretrainedConfig, context: int) -> None:
    """Refuse longrope beyond its original length: transformers would then use the long factors for every text.

    Raises ModelUnavailable.
    """
    config = config.get_text_config()
    rope: Any = getattr(config, "rope_parameters", None) or {}
    short = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if rope.get("rope_type") == "longrope" and short and context > short:
        reason = f"its positions are of another kind beyond {short} tokens, which is not served"
        raise ModelUnavailable(spec.id, f"{reason}; give `max_tokens = {short}` in its entry")
