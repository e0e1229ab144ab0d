"""A trial of an architecture without weights: what its layers ask of the engine's attention.

Owns the trial. It runs transformers' own modelling code on tensors that have shapes and no numbers, so it costs neither
memory nor much time, whatever the model's size.
"""

from copy import deepcopy
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from ..loading.quiet import READING, quiet
from .attention import Manner, use_cached_attention
from .kv_cache import KVShape

TOKENS = 8
MOST_LAYERS = 1000
"""A configuration that names more is not tried, which would take long: the loader counts its weights."""


class _AskedAttention:
    """Stands in a step's place, and notes which layers ask for attention."""

    def __init__(self, shape: KVShape) -> None:
        self._kept = shape.heads, shape.head_dim
        self.layers: list[int] = []

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, manner: Manner
    ) -> torch.Tensor:
        """Raises ValueError where keys and values are not what the cache has room for."""
        if any((part.shape[1], part.shape[3]) != self._kept for part in (key, value)):
            raise ValueError("its keys and values are not of one width")
        self.layers.append(layer)
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def fault(config: PretrainedConfig, shape: KVShape) -> str | None:
    """Why a model's layers cannot use the engine's attention, as a clause; None where they can.

    shape: what the cache will keep of each token. A model whose code reads numbers is tried as far as that, as one
    whose positions turn by the length of the text.
    """
    if shape.layers > MOST_LAYERS:
        return None
    asked = _AskedAttention(shape)
    try:
        _run(config, asked)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    except ValueError as error:
        return str(error).partition("\n")[0]
    except Exception as error:  # an architecture that cannot may raise anything
        return f"it fails with {str(error).partition(chr(10))[0]!r}"
    return None if sorted(asked.layers) == [*range(shape.layers)] else "not all of its layers keep keys and values"


def _run(config: PretrainedConfig, asked: _AskedAttention) -> None:
    with READING, FakeTensorMode(), torch.no_grad(), quiet():
        network: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            deepcopy(config),
            dtype=torch.bfloat16,  # the one for which torch knows the shapes of all products
            trust_remote_code=False,
        )
        use_cached_attention(network)
        network.eval()(
            input_ids=torch.zeros(1, TOKENS, dtype=torch.long),
            position_ids=torch.arange(TOKENS)[None],
            use_cache=False,
            logits_to_keep=torch.tensor([TOKENS - 1]),
            step_attention=asked,
        )
