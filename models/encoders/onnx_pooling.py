"""From the output of an ONNX graph to one vector a text, in numpy.

Owns the poolings and the choice of the output that is pooled. Each text is pooled over its own rows, without a copy of
what is padded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable
from .base import Tokens, Vectors
from .onnx_session import Array

POOLED = "sentence_embedding"
"""The name under which exporters give what the model's authors pooled themselves."""


def _weighted_mean(hidden: Vectors, first: int) -> Vectors:
    weights = np.arange(first + 1, first + len(hidden) + 1, dtype=np.float32)
    mean: Vectors = np.einsum("t,td->d", weights, hidden) / weights.sum()
    return mean


POOLINGS: dict[str, Callable[[Vectors, int], Vectors]] = {
    "mean": lambda hidden, first: hidden.mean(axis=0),
    "cls": lambda hidden, first: hidden[0],
    "lasttoken": lambda hidden, first: hidden[-1],
    "max": lambda hidden, first: hidden.max(axis=0),
    "mean_sqrt_len_tokens": lambda hidden, first: hidden.sum(axis=0) / np.float32(len(hidden) ** 0.5),
    "weightedmean": _weighted_mean,
}
"""Each makes (D,) of the hidden states (T, D) float32 of a text's tokens, the first of which stands at `first`."""


@dataclass(frozen=True, slots=True)
class Pooling:
    """How hidden states become a vector: the mode, and whether the prompt's own tokens count."""

    mode: str = "mean"
    include_prompt: bool = True

    def __call__(self, hidden: Array, batch: Sequence[Tokens]) -> Vectors:
        """hidden (B, T, D) of any float -> (B, D) float32. A text of which no token counts gets zeros."""
        vectors = np.zeros((len(batch), hidden.shape[2]), dtype=np.float32)
        pool = POOLINGS[self.mode]
        for row, states, tokens in zip(vectors, hidden, batch, strict=True):
            first = 0 if self.include_prompt else tokens.prompt_tokens
            if first < len(tokens):
                row[:] = pool(states[first : len(tokens)].astype(np.float32, copy=False), first)
        return vectors


def chosen_output(spec: ModelSpec, outputs: dict[str, Array]) -> tuple[str, int, bool]:
    """Which output of a trial run gives the vectors: its name, their dimensions, and whether it is pooled already.

    Raises ModelUnavailable.
    """
    ranks = {name: value.ndim for name, value in outputs.items()}
    hidden = [name for name, rank in ranks.items() if rank == 3]
    vectors = [name for name, rank in ranks.items() if rank == 2]
    if ranks.get(POOLED) == 2:
        return POOLED, outputs[POOLED].shape[1], True
    if hidden:
        return hidden[0], outputs[hidden[0]].shape[2], False
    if len(vectors) == 1:
        return vectors[0], outputs[vectors[0]].shape[1], True
    shapes = {name: list(value.shape) for name, value in outputs.items()}
    reason = f"of its outputs {shapes} none is (texts, tokens, dimensions) or the only (texts, dimensions)"
    raise ModelUnavailable(spec.id, f"{reason}; export it with token embeddings or one vector a text")
