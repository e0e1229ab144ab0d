"""A loaded causal language model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from .kv_cache import KVShape, kv_dtype
from .prompt import Prompts
from .tokenizer import GenerationTokenizer
from .types import EngineFacts


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A loaded model. facts: of the model alone, without an engine's limits and cache.

    stop_ids: end its texts. kv_shape: in the model's dtype. network: transformers' own module, in evaluation mode.
    probe, probe_scores: token ids, and the model's logits for the token after the last of them, (V,) float32 on the
    CPU, computed on this device with its own attention.
    """

    facts: EngineFacts
    stop_ids: frozenset[int]
    kv_shape: KVShape
    network: PreTrainedModel
    tokenizer: GenerationTokenizer
    prompts: Prompts
    probe: Sequence[int]
    probe_scores: Tensor

    def cached_shape(self) -> KVShape:
        """Keys and values in the dtype that is fastest on the device."""
        sharing = self.network.config.get_text_config().num_attention_heads // self.kv_shape.heads
        return replace(self.kv_shape, dtype=kv_dtype(self.kv_shape.dtype, sharing, torch.device(self.facts.device)))

    def close(self) -> None:
        """Free the weights, even if something still refers to this object or to a module."""
        for module in self.network.modules():
            module._parameters.clear()
            module._buffers.clear()
