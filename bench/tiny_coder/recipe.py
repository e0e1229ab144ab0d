"""The recipe of a run: the model's shape, the optimisers, and their schedule by tokens, so that a seed repeats it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """The hyperparameters.

    total_tokens: after these the learning rate is zero; decay: their share during which it falls. stages: (first token,
    tokens of a window, windows of a step); a new stage begins with an epoch. Until the decay nothing depends on
    total_tokens, so it may be changed.
    """

    total_tokens: int
    seed: int = 0
    fim_rate: float = 0.25
    muon_rate: float = 0.02
    adam_rate: float = 0.005
    weight_decay: float = 0.1
    warmup_tokens: int = 240_000
    decay: float = 0.25
    stages: tuple[tuple[int, int, int], ...] = ((0, 512, 8), (2_000_000, 1024, 4), (4_500_000, 2048, 2))

    def rate(self, tokens: int) -> float:
        """The factor of the learning rates after `tokens`: linear warm-up, constant, linear decay to zero."""
        left = max(0, self.total_tokens - tokens)
        return min(1.0, tokens / self.warmup_tokens, left / (self.decay * self.total_tokens))

    def stage(self, tokens: int) -> tuple[int, int]:
        """(tokens of a window, windows of a step) for an epoch that begins after `tokens`."""
        return next((width, rows) for begin, width, rows in reversed(self.stages) if tokens >= begin)


@dataclass(slots=True)
class Progress:
    """The progress of a run.

    steps, tokens: trained on. epoch, window: the current epoch, and its next window. width, rows: tokens of a
    window, windows of a step. cpu_s: processor time spent.
    """

    steps: int = 0
    tokens: int = 0
    epoch: int = 0
    window: int = 0
    width: int = 0
    rows: int = 0
    cpu_s: float = 0.0


def build(vocabulary: int, seed: int, shape: Mapping[str, Any] = SHAPE) -> LlamaForCausalLM:
    """A Llama with tied embeddings, its layers initialised as the identity. Id 0 begins and ends a text."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, **shape)
    )
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def optimisers(model: LlamaForCausalLM, recipe: Recipe) -> list[Optimizer]:
    """Muon for the layers' matrices, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not m for m in matrices)]
    return [
        Muon(matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay),
        AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
