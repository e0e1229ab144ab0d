"""What a training will take, measured before it begins: on its largest batch the memory, on a middling one the time.

Knows no trainer; changes no weights and uses up no random numbers.
"""

import time
from collections.abc import Callable, Sequence

import torch

from ...sandbox.limits import resident_bytes
from .batches import Example

MARGIN = 1.25
STATE_BYTES = 16
"""Of a trained weight, which a rehearsal does not take: the optimiser's two averages, and as much for its intermediate
values or while a checkpoint is written."""
WRITTEN_BYTES = 8
"""Of any weight, at the end: the candidate in float32, and the same again while it is written."""


def rehearse(compute: Callable[[list[int]], None], items: Sequence[Example], batches: list[list[int]]) -> float:
    """Compute the largest batch, and then one of middle size -> seconds that all of them should take."""

    def tokens(members: list[int]) -> int:
        """With padding, of all columns."""
        columns = zip(*(items[index].columns for index in members), strict=False)
        return len(members) * sum(max(map(len, column)) for column in columns)

    by_size = sorted(batches, key=tokens)
    compute(by_size[-1])
    middle, began = by_size[len(by_size) // 2], time.monotonic()
    compute(middle)
    return (time.monotonic() - began) * sum(map(tokens, batches)) / tokens(middle)


def needed_bytes(model: torch.nn.Module, before: int) -> int:
    """What a training takes, after its rehearsal. before: what the process had in memory before the model."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    device = next(model.parameters()).device
    if device.type == "cuda":
        return int((torch.cuda.max_memory_reserved(device) + trained * STATE_BYTES) * MARGIN)
    at_the_end = sum(weight.numel() for weight in model.parameters()) * WRITTEN_BYTES
    peak = resident_bytes(most=True) - before
    return int(max(peak + trained * STATE_BYTES, at_the_end) * MARGIN)
