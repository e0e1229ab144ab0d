"""Log-probabilities of tokens under the model itself: before penalties, filters and temperature.

Knows no sampling.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Likeliest: TypeAlias = tuple[tuple[int, float], ...]


def logprobs(logits: Tensor, ids: Sequence[int], alternatives: Sequence[int]) -> list[tuple[float, Likeliest]]:
    """For each row its token's log-probability, and so many of the likeliest tokens with theirs, likeliest first.

    logits (R, V) float32, ids and alternatives: one a row. Tokens of probability 0 are not told of.
    """
    logs = torch.log_softmax(logits, dim=-1)
    column = torch.tensor(ids, device=logits.device)[:, None]
    chosen = logs.gather(1, column)[:, 0].tolist()
    values, tokens = (part.tolist() for part in logs.topk(min(max(alternatives), logs.shape[1])))
    likeliest = [
        tuple((token, value) for token, value in zip(found[:count], of_them[:count], strict=True) if value > -torch.inf)
        for found, of_them, count in zip(tokens, values, alternatives, strict=True)
    ]
    return list(zip(chosen, likeliest, strict=True))
