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

    stop_ids: the tokens that end a text. kv_shape: in the model's dtype. network: transformers' own module, in
    evaluation mode. test_ids, test_logits: token ids, and the model's logits for the token after the last of them, (V,)
    float32 on the CPU, computed on this device with its own attention.
    """

    facts: EngineFacts
    stop_ids: frozenset[int]
    kv_shape: KVShape
    network: PreTrainedModel
    tokenizer: GenerationTokenizer
    prompts: Prompts
    test_ids: Sequence[int]
    test_logits: Tensor

    def cache_shape(self) -> KVShape:
        """The shape of the KV cache: as kv_shape, but in the dtype in which attention is fastest on this device."""
        queries_per_kv_head = self.network.config.get_text_config().num_attention_heads // self.kv_shape.heads
        return replace(
            self.kv_shape, dtype=kv_dtype(self.kv_shape.dtype, queries_per_kv_head, torch.device(self.facts.device))
        )

    def close(self) -> None:
        """Free the weights, even if something still refers to this object or to a module."""
        for module in self.network.modules():
            module._parameters.clear()
            module._buffers.clear()
