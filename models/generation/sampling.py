"""Sampling of each completion's next token, for a whole batch at once.

The order is: biases and the mask of early ends, penalties, then argmax or a draw (filters.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .filters import draw
from .sampler_state import SamplerState, TokenHistory

NOT_FINITE = -1
MIN_LOGPROB = -9999.0
"""Reported for minus infinity, which JSON cannot express; other servers use the same value."""
TopLogprobs: TypeAlias = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A row's next token; its id is NOT_FINITE if the scores hold NaN or nothing above minus infinity.

    logprob, top: of the token and of the likeliest ones, if the request asks for them; see `logprobs`.
    """

    id: int
    logprob: float | None = None
    top: TopLogprobs = ()


def sample(logits: Tensor, states: Sequence[SamplerState]) -> list[Chosen]:
    """Choose the next token of each row. Rows never influence each other; ties of a greedy choice go to the lowest id.

    logits (B, V) float32, not modified; states: one per row, not modified (see SamplerState.append).
    """
    scores = adjusted(logits, states)
    largest, ids = scores.max(dim=1)
    if drawing := [row for row, state in enumerate(states) if not state.is_greedy]:
        ids[drawing] = draw(scores[drawing], largest[drawing], [states[row] for row in drawing])
    tokens = torch.where(torch.isfinite(largest), ids, NOT_FINITE).tolist()
    with_logprobs = _with_logprobs(logits, tokens, states)
    return [with_logprobs.get(row, Chosen(token)) for row, token in enumerate(tokens)]


def _with_logprobs(logits: Tensor, ids: Sequence[int], states: Sequence[SamplerState]) -> dict[int, Chosen]:
    """The rows whose requests ask for log-probabilities."""
    counts = {
        row: count
        for row, state in enumerate(states)
        if (count := state.sampling.logprobs) is not None and ids[row] != NOT_FINITE
    }
    if not counts:
        return {}
    found = logprobs(logits[list(counts)], [ids[row] for row in counts], list(counts.values()))
    return {row: Chosen(ids[row], *values) for row, values in zip(counts, found, strict=True)}


def logprobs(logits: Tensor, ids: Sequence[int], alternatives: Sequence[int]) -> list[tuple[float, TopLogprobs]]:
    """Each row's log-probability of its token, and its likeliest tokens with theirs, likeliest first.

    They are the model's own: before penalties, filters and temperature. logits (R, V) float32; ids: one per row;
    alternatives: how many of the likeliest, per row. Tokens of probability 0 are left out of the likeliest; the row's
    own token then has MIN_LOGPROB.
    """
    logs = torch.log_softmax(logits, dim=-1)
    column = torch.tensor(ids, device=logits.device)[:, None]
    chosen = logs.gather(1, column)[:, 0].clamp(min=MIN_LOGPROB).tolist()
    values, tokens = (part.tolist() for part in logs.topk(min(max(alternatives), logs.shape[1])))
    likeliest = [
        tuple((token, value) for token, value in zip(found[:count], of_them[:count], strict=True) if value > -torch.inf)
        for found, of_them, count in zip(tokens, values, alternatives, strict=True)
    ]
    return list(zip(chosen, likeliest, strict=True))


def adjusted(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Logits with each row's biases and mask, then its penalties.

    logits (B, V) float32 -> (B, V): a copy, or the same tensor if no row asks for anything.
    """
    biased = [row for row, state in enumerate(states) if len(state.biases[0])]
    penalised = [(row, history) for row, state in enumerate(states) if (history := state.history) is not None]
    if not biased and not penalised:
        return logits
    scores = logits.clone()
    if biased:
        _add_biases(scores, biased, states)
    if penalised:
        _penalise(scores, penalised, states)
    return scores


def _add_biases(scores: Tensor, rows: Sequence[int], states: Sequence[SamplerState]) -> None:
    """Masks are added too, so a NaN stays one and shows that the model failed."""
    biases = [states[row].biases for row in rows]
    lengths = [len(ids) for ids, _ in biases]
    where = _tensor([np.repeat(rows, lengths)], scores), _tensor([ids for ids, _ in biases], scores)
    scores.index_put_(where, _tensor([values for _, values in biases], scores), accumulate=True)


def _penalise(scores: Tensor, rows: Sequence[tuple[int, TokenHistory]], states: Sequence[SamplerState]) -> None:
    ids = [history.ids for _, history in rows]
    lengths = [len(tokens) for tokens in ids]
    samplings = [states[row].sampling for row, _ in rows]
    where = _tensor([np.repeat([row for row, _ in rows], lengths)], scores), _tensor(ids, scores)
    counts = _tensor([history.counts for _, history in rows], scores)

    def per_token(values: Iterable[float]) -> Tensor:
        return _tensor([np.repeat(np.array(list(values), np.float32), lengths)], scores)

    repetition = per_token(sampling.repetition_penalty for sampling in samplings)
    presence = per_token(sampling.presence_penalty for sampling in samplings)
    frequency = per_token(sampling.frequency_penalty for sampling in samplings)
    seen = scores[where]
    seen = torch.where(seen < 0, seen * repetition, seen / repetition)
    scores[where] = seen - presence * (counts > 0) - frequency * counts


def _tensor(parts: Sequence[NDArray[np.generic]], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(like.device)
