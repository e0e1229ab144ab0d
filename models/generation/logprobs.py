"""Log-probabilities of tokens under the model itself: before penalties, filters and temperature.

Knows no sampling.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

LEAST = -9999.0
"""For minus infinity, which JSON has not; as elsewhere."""
Likeliest: TypeAlias = tuple[tuple[int, float], ...]


def logprobs(logits: Tensor, ids: Sequence[int], alternatives: Sequence[int]) -> list[tuple[float, Likeliest]]:
    """For each row its token's log-probability, and so many of the likeliest tokens with theirs, likeliest first.

    logits (R, V) float32, ids and alternatives: one a row. Of the likeliest, tokens of probability 0 are not told of;
    a row's own one then has LEAST.
    """
    logs = torch.log_softmax(logits, dim=-1)
    column = torch.tensor(ids, device=logits.device)[:, None]
    chosen = logs.gather(1, column)[:, 0].clamp(min=LEAST).tolist()
    values, tokens = (part.tolist() for part in logs.topk(min(max(alternatives), logs.shape[1])))
    likeliest = [
        tuple((token, value) for token, value in zip(found[:count], of_them[:count], strict=True) if value > -torch.inf)
        for found, of_them, count in zip(tokens, values, alternatives, strict=True)
    ]
    return list(zip(chosen, likeliest, strict=True))
