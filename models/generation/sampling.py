"""The next token of every running completion: greedy or drawn, each as its request asks.

Owns the order of things (biases and mask, penalties, then argmax or temperature, top-k, top-p, min-p and the draw),
what is refused, and what a row without finite scores becomes. Knows no model and no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InvalidRequest
from .filters import draw
from .logprobs import Likeliest, logprobs
from .penalties import adjusted
from .request import Sampling
from .sampler_state import SamplerState

__all__ = ["NOT_FINITE", "Chosen", "SamplerState", "check", "sample"]

NOT_FINITE = -1
MAX_LOGPROBS = 20
MAX_BIAS = 100.0


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row's next token, or NOT_FINITE as its id where the scores hold NaN or nothing above minus infinity.

    logprob, top: of the token and of the likeliest ones, where the request asks; see `logprobs`.
    """

    id: int
    logprob: float | None = None
    top: Likeliest = ()


def check(sampling: Sampling, vocabulary: int) -> None:
    """Refuse what cannot be sampled. A top_k above the vocabulary is none. Raises InvalidRequest."""
    ranges = {
        "temperature": (0, 2),
        "top_k": (0, 2**31 - 1),
        "min_p": (0, 1),
        "repetition_penalty": (0.01, 10),
        "presence_penalty": (-2, 2),
        "frequency_penalty": (-2, 2),
        "seed": (0, 2**64 - 1),
    }
    for name, (low, high) in ranges.items():
        _check_range(name, getattr(sampling, name), low, high)
    if not 0 < sampling.top_p <= 1:
        raise InvalidRequest("top_p", f"{sampling.top_p} is not above 0 and at most 1")
    if sampling.logprobs is not None:
        _check_range("logprobs", sampling.logprobs, 0, MAX_LOGPROBS)
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary:
            raise InvalidRequest("logit_bias", f"token id {token} does not exist; the vocabulary has {vocabulary}")
        _check_range("logit_bias", bias, -MAX_BIAS, MAX_BIAS)


def _check_range(name: str, value: float, low: float, high: float) -> None:
    """NaN is within no range."""
    if not low <= value <= high:
        raise InvalidRequest(name, f"{value} is not between {low} and {high}")


def sample(logits: Tensor, states: Sequence[SamplerState]) -> list[Chosen]:
    """Choose the next token of each row; the states do not change until they are told by `append`.

    logits (B, V) float32, left as they are; states: one a row. No row's logits make it raise, or change another's
    token. Ties of a greedy choice go to the lowest id.
    """
    scores = adjusted(logits, states)
    largest, ids = scores.max(dim=1)
    if drawing := [row for row, state in enumerate(states) if not state.is_greedy]:
        ids[drawing] = draw(scores[drawing], largest[drawing], [states[row] for row in drawing])
    found = torch.where(torch.isfinite(largest), ids, NOT_FINITE).tolist()
    told = _told(logits, found, states)
    return [told.get(row, Chosen(token)) for row, token in enumerate(found)]


def _told(logits: Tensor, ids: Sequence[int], states: Sequence[SamplerState]) -> dict[int, Chosen]:
    """The rows whose log-probabilities are asked for."""
    asked = {
        row: count
        for row, state in enumerate(states)
        if (count := state.sampling.logprobs) is not None and ids[row] != NOT_FINITE
    }
    if not asked:
        return {}
    found = logprobs(logits[list(asked)], [ids[row] for row in asked], list(asked.values()))
    return {row: Chosen(ids[row], *values) for row, values in zip(asked, found, strict=True)}
