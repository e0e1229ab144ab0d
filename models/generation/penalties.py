"""What changes logits before anything is drawn: biases, the mask of early ends, and penalties for tokens seen.

All rows at once, and of each row only the tokens concerned. Knows no filters and no noise.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .sampler_state import SamplerState, TokenHistory


def adjusted(logits: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Logits with each row's biases and mask, then its penalties.

    logits (B, V) float32 -> (B, V): a copy, or the same tensor where no row asks for anything.
    """
    biased = [row for row, state in enumerate(states) if len(state.biases[0])]
    penalised = [(row, history) for row, state in enumerate(states) if (history := state.history) is not None]
    if not biased and not penalised:
        return logits
    scores = logits.clone()
    if biased:
        _add(scores, biased, states)
    if penalised:
        _penalise(scores, penalised, states)
    return scores


def _add(scores: Tensor, rows: Sequence[int], states: Sequence[SamplerState]) -> None:
    """Added, masks too: a NaN stays one, and tells that the model has failed."""
    biases = [states[row].biases for row in rows]
    lengths = [len(ids) for ids, _ in biases]
    where = _tensor([np.repeat(rows, lengths)], scores), _tensor([ids for ids, _ in biases], scores)
    scores.index_put_(where, _tensor([values for _, values in biases], scores), accumulate=True)


def _penalise(scores: Tensor, rows: Sequence[tuple[int, TokenHistory]], states: Sequence[SamplerState]) -> None:
    """Repetition divides what is positive and multiplies what is negative; presence and frequency are subtracted."""
    ids = [history.ids for _, history in rows]
    lengths = [len(one) for one in ids]
    asked = [states[row].sampling for row, _ in rows]
    where = _tensor([np.repeat([row for row, _ in rows], lengths)], scores), _tensor(ids, scores)
    counts = _tensor([history.counts for _, history in rows], scores)

    def of_each(values: Iterable[float]) -> Tensor:
        return _tensor([np.repeat(np.array(list(values), np.float32), lengths)], scores)

    repetition = of_each(sampling.repetition_penalty for sampling in asked)
    presence = of_each(sampling.presence_penalty for sampling in asked)
    frequency = of_each(sampling.frequency_penalty for sampling in asked)
    seen = scores[where]
    seen = torch.where(seen < 0, seen * repetition, seen / repetition)
    scores[where] = seen - presence * (counts > 0) - frequency * counts


def _tensor(parts: Sequence[NDArray[np.generic]], like: Tensor) -> Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(like.device)
