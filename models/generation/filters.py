"""Drawing a token: temperature, then top-k, top-p and min-p, then a race among the tokens that are left.

The race is Gumbel's: each token's weight is divided by exponential noise of its own and the largest wins, which draws
in proportion to the weights. A row's token depends on nothing but that row: what is computed together is computed
element by element, or summed in float64. Knows no penalties and no requests' text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import counter_rng
from .sampler_state import SamplerState
from .topk_topp import top_k_mask, top_p_mask

CANDIDATES = 64, 512
"""How many of the likeliest tokens are looked at, fewest first, before a whole vocabulary is, which is slow."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of logits to draw from: scores (R, V), and one number a row, (R, 1), of everything else.

    largest: of the row's scores. top_k, top_p: V and infinity where they keep every token.
    """

    scores: Tensor
    largest: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    noise_start: Tensor

    def at(self, places: Sequence[int]) -> "_Rows":
        """Some of the rows."""
        return _Rows(*(getattr(self, field.name)[list(places)] for field in fields(self)))

    def weights(self, scores: Tensor) -> Tensor:
        """Probability of each score (R, N) relative to the row's likeliest token: in [0, 1]."""
        return ((scores - self.largest) / self.temperature).exp_()


def draw(scores: Tensor, largest: Tensor, states: Sequence[SamplerState]) -> Tensor:
    """Draw each row's token.

    scores (R, V) float32, largest of each row (R,) -> token ids (R,) int64. A row that is not finite gets any token.
    """
    rows = _rows(scores, largest, states)
    drawn = torch.empty_like(largest, dtype=torch.int64)
    waiting = [place for place, state in enumerate(states) if state.is_filtered]
    for size in CANDIDATES:
        if tried := [place for place in waiting if states[place].top_k < size < scores.shape[1]]:
            drawn[tried], settled = _draw_from_likeliest(rows.at(tried), size)
            done = {place for place, is_settled in zip(tried, settled.tolist(), strict=True) if is_settled}
            waiting = [place for place in waiting if place not in done]
    if waiting:
        drawn[waiting] = _draw_filtered(rows.at(waiting))
    if free := [place for place, state in enumerate(states) if not state.is_filtered]:
        drawn[free] = _draw_from_all(rows.at(free))
    return drawn


def _rows(scores: Tensor, largest: Tensor, states: Sequence[SamplerState]) -> _Rows:
    def column(values: list[float] | list[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=scores.device)[:, None]

    asked = [state.sampling for state in states]
    return _Rows(
        scores,
        largest[:, None],
        temperature=column([sampling.temperature for sampling in asked], torch.float32),
        top_k=column([state.top_k for state in states], torch.int64),
        top_p=column([sampling.top_p if sampling.top_p < 1 else torch.inf for sampling in asked], torch.float64),
        min_p=column([sampling.min_p for sampling in asked], torch.float32),
        noise_start=column([state.noise_start for state in states], torch.int64),
    )


def _draw_from_all(rows: _Rows) -> Tensor:
    return _fastest(rows.weights(rows.scores), rows.noise_start, _all_ids(rows))


def _draw_filtered(rows: _Rows) -> Tensor:
    weights = rows.weights(rows.scores)
    if bool((rows.top_k < rows.scores.shape[1]).any()):
        weights *= top_k_mask(rows.scores, rows.top_k)
    kept = (weights > 0) & (weights >= rows.min_p)
    if bool((rows.top_p < torch.inf).any()):
        wanted = rows.top_p * weights.sum(1, keepdim=True, dtype=torch.float64)
        kept &= top_p_mask(rows.scores, weights, wanted)
    return _fastest(weights * kept, rows.noise_start, _all_ids(rows))


def _draw_from_likeliest(rows: _Rows, size: int) -> tuple[Tensor, Tensor]:
    """Draw from the `size` likeliest tokens -> token ids (R,), and whether all that the filters keep is among them.

    size: above each row's top_k.
    """
    scores, ids = _ranked(rows.scores, size)
    counts_all = rows.top_k == rows.scores.shape[1]
    in_top_k = scores >= scores.gather(1, rows.top_k.clamp(max=size) - 1)
    weights = rows.weights(scores) * in_top_k
    mass = weights.sum(1, keepdim=True, dtype=torch.float64)
    if bool((counts_all & (rows.top_p < torch.inf)).any()):
        mass = torch.where(counts_all, rows.weights(rows.scores).sum(1, keepdim=True, dtype=torch.float64), mass)
    above = weights.cumsum(1, dtype=torch.float64) - weights
    kept = (weights > 0) & (weights >= rows.min_p) & (above < rows.top_p * mass)
    # Every filter keeps a first part of the ranking. So nothing is missing where the last candidate has no weight, or
    # is out and no tie of one that is in; with top-k its ties count towards the mass, in or out.
    lowest = scores.masked_fill(~kept, torch.inf).amin(1)
    settled = (weights[:, -1] == 0) | (counts_all[:, 0] & (scores[:, -1] < lowest))
    return _fastest(weights * kept, rows.noise_start, ids), settled


def _all_ids(rows: _Rows) -> Tensor:
    return torch.arange(rows.scores.shape[1], device=rows.scores.device)[None]


def _ranked(scores: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The largest scores in falling order, and their ids; of equal ones the lower id first."""
    ids = scores.topk(size, sorted=False).indices.sort().values
    ranked, order = scores.gather(1, ids).sort(descending=True, stable=True)
    return ranked, ids.gather(1, order)


def _fastest(weights: Tensor, starts: Tensor, ids: Tensor) -> Tensor:
    """Winner of the race: weights (R, N), starts (R, 1), ids (R, N) or (1, N) -> token ids (R,)."""
    winner = weights.div_(counter_rng.exponential(starts, ids)).argmax(1, keepdim=True)
    return ids.expand_as(weights).gather(1, winner)[:, 0]
