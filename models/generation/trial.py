"""A trial of an architecture without weights: what its layers ask of the engine's attention, from its configuration.

Owns the trial. It runs transformers' own modelling code on tensors that have a shape and nothing in them.
"""

from copy import deepcopy

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from transformers import AutoModelForCausalLM, PretrainedConfig

from ..quiet import quiet
from .attention import Manner, use_cached_attention
from .kv import KVShape

TOKENS = 8


class _Asked:
    """Stands where a step's attention will, and notes which layers ask it for what."""

    def __init__(self, shape: KVShape) -> None:
        self.layers: list[int] = []
        self._kept = shape.heads, shape.head_dim

    def __call__(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, manner: Manner
    ) -> torch.Tensor:
        for part in (key, value):
            if (part.shape[1], part.shape[3]) != self._kept:
                raise ValueError("its keys and values are not of one width")
        self.layers.append(layer)
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])


def fault(config: PretrainedConfig, shape: KVShape) -> str | None:
    asked = _Asked(shape)
    with FakeTensorMode(shape_env=ShapeEnv()), quiet(), torch.inference_mode(False), torch.no_grad():
        network = AutoModelForCausalLM.from_config(deepcopy(config), trust_remote_code=False)
        use_cached_attention(network)
        network.eval()(
            input_ids=torch.zeros(1, TOKENS, dtype=torch.long),
            position_ids=torch.arange(TOKENS)[None],
            use_cache=False,
            logits_to_keep=torch.tensor([TOKENS - 1]),
            step_attention=asked,
        )
    if sorted(asked.layers) != list(range(shape.layers)):
        return "not all of its layers keep keys and values of their own"
    return None
