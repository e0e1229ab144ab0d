"""A loaded causal language model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..catalogue import Quantization, SamplingDefaults
from .kv_cache import KVShape, kv_dtype
from .prompt import Prompts
from .tokenizer import GenerationTokenizer
from .types import EngineFacts, EngineLimits


@dataclass(frozen=True, slots=True)
class CausalLM:
    """A loaded model and its facts.

    model: catalogue id. version: exact weights and precision (encoders.base.version_of). device: cpu or cuda:0. dtype:
    of the computation. max_tokens: context length, prompt plus completion. vocabulary: rows of the output layer.
    stop_ids: end a text. kv_shape: in the model's dtype. network: transformers' own module, in evaluation mode.
    probe, probe_scores: token ids, and the model's logits for the token after the last of them, (V,) float32 on the
    CPU, computed on this device with its own attention.
    """

    model: str
    version: str
    device: str
    dtype: str
    quantization: Quantization | None
    weight_bytes: int
    max_tokens: int
    vocabulary: int
    stop_ids: frozenset[int]
    defaults: SamplingDefaults
    kv_shape: KVShape
    network: PreTrainedModel
    tokenizer: GenerationTokenizer
    prompts: Prompts
    probe: Sequence[int]
    probe_scores: Tensor
    notes: tuple[str, ...] = ()

    def facts(self, limits: EngineLimits, kv_bytes: int) -> EngineFacts:
        """The facts of an engine over this model."""
        return EngineFacts(
            model=self.model,
            version=self.version,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            weight_bytes=self.weight_bytes,
            kv_bytes=kv_bytes,
            max_tokens=self.max_tokens,
            vocabulary=self.vocabulary,
            chat=self.prompts.chat,
            fill=self.prompts.fill,
            max_running=limits.max_running,
            max_requests=limits.max_running + limits.waiting,
            defaults=self.defaults,
            notes=self.notes,
        )

    def cached_shape(self) -> KVShape:
        """Keys and values in the dtype that is fastest on the device."""
        sharing = self.network.config.get_text_config().num_attention_heads // self.kv_shape.heads
        return replace(self.kv_shape, dtype=kv_dtype(self.kv_shape.dtype, sharing, torch.device(self.device)))

    def close(self) -> None:
        """Free the weights, even if something still refers to this object or to a module."""
        for module in self.network.modules():
            module._parameters.clear()
            module._buffers.clear()
