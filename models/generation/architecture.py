"""What a causal language model's configuration says: whether the engine can run it, how far it sees, what it keeps.

Owns which architectures are refused, and why: by what they say and by a trial. Reads config.json alone.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable
from ..loading.quiet import quiet
from .kv_cache import KVShape
from .trial import fault

SERVED_LAYERS = {"full_attention", "sliding_attention"}
LONGEST_BELIEVED = 100_000_000
"""Some configurations state an astronomical context for none."""


def served_config(spec: ModelSpec, place: Path) -> PretrainedConfig:
    """The configuration in a folder, or in a file, of a model that the engine can run; no code there is ever run.

    Raises ModelUnavailable.
    """
    try:
        with quiet():
            config: PretrainedConfig = AutoConfig.from_pretrained(
                str(place), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # a foreign file can make the library raise anything
        first_line = str(error).partition("\n")[0]
        reason = f"the config.json in {place} cannot be used ({type(error).__name__}: {first_line[:200]})"
        raise ModelUnavailable(spec.id, f"{reason}; choose another model") from error
    if why := _why_not(config):
        raise ModelUnavailable(
            spec.id, f"its architecture, {config.model_type}, is not served: {why}; choose another model"
        )
    _require_short_rope(spec, config, context_of(spec, config))
    return config


def context_of(spec: ModelSpec, config: PretrainedConfig) -> int:
    """Tokens of prompt and completion together: the model's positions, or the entry's `max_tokens` where fewer.

    Raises ModelUnavailable where neither says.
    """
    stated = [_positions(config), spec.max_tokens]
    believed = [limit for limit in stated if limit and 0 < limit < LONGEST_BELIEVED]
    if not believed:
        raise ModelUnavailable(spec.id, "it states no longest context; give `max_tokens` in its entry")
    return min(believed)


def kv_shape(config: PretrainedConfig, dtype: torch.dtype) -> KVShape:
    """What each token leaves in the cache."""
    config = config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return KVShape(config.num_hidden_layers, kv_heads, head_dim, dtype)


def _positions(config: PretrainedConfig) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _why_not(config: PretrainedConfig) -> str | None:
    """Why the engine cannot run a model, as a clause; None where it can, as far as a configuration tells."""
    try:
        return _unserved(config) or fault(config, kv_shape(config, torch.float32))
    except Exception as error:  # a configuration that does not say such things, or not for the whole model
        return f"it does not say what keys and values its layers have ({str(error).partition(chr(10))[0][:200]})"


def _unserved(config: PretrainedConfig) -> str | None:
    """What a configuration says that the engine cannot do, as a clause."""
    networks: Any = AutoModelForCausalLM._model_mapping
    if type(config) not in networks:
        return "it does not generate text from text alone"
    network, config = networks[type(config)], config.get_text_config()
    faults = {
        "it reads with an encoder, through cross attention": _says(config, "is_encoder_decoder", "add_cross_attention"),
        "it keeps a state instead of keys and values": network._is_stateful,
        "its attention cannot be exchanged for the engine's": not network._supports_attention_backend,
        "its tokens see those behind them": _says(config, "use_bidirectional_attention")
        or getattr(config, "is_causal", True) is False,
        "some of its layers see neither the whole text nor a window": _says(config, "attention_chunk_size")
        or not _kinds(config) <= SERVED_LAYERS,
        "its keys and values are not of one width": _says(config, "kv_lora_rank", "v_head_dim"),
        "some of its layers have no keys and values of their own": _says(config, "num_kv_shared_layers"),
        "its weights are quantised already, which is only done here": _says(config, "quantization_config"),
    }
    return next((reason for reason, applies in faults.items() if applies), None)


def _says(config: PretrainedConfig, *fields: str) -> bool:
    return any(getattr(config, field, None) for field in fields)


def _kinds(config: PretrainedConfig) -> set[str]:
    """The kinds of layers that a configuration names, where it does."""
    kinds: Any = getattr(config, "layer_types", None) or ()
    return set(kinds)


def _require_short_rope(spec: ModelSpec, config: PretrainedConfig, context: int) -> None:
    """Refuse longrope beyond the length it was made from: there transformers turns every text by the longest one's.

    Raises ModelUnavailable.
    """
    config = config.get_text_config()
    rope: Any = getattr(config, "rope_parameters", None) or {}
    short = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if rope.get("rope_type") == "longrope" and short and context > short:
        reason = f"its positions are of another kind beyond {short} tokens, which is not served"
        raise ModelUnavailable(spec.id, f"{reason}; give `max_tokens = {short}` in its entry")
