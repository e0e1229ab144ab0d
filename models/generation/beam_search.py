"""Beam search: which continuations of a prompt live on, which have ended, and when no better one can come.

Bookkeeping alone, with the results of transformers' `generate`: knows no model and no cache, whose rows the caller
moves as it is told.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .errors import InvalidRequest
from .request import FinishReason

MAX_BEAMS = 8
MAX_LENGTH_PENALTY = 10.0
_NEVER = -1e9
"""The score of what must not be chosen, finite as in transformers: sums with it keep their order."""
_Step: TypeAlias = tuple[int, int]
"""A live beam's place, and the token that continues it."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A text that has ended. tokens: without the ending id, stop_id, None where max_tokens cut it.

    score: sum of its log-probabilities, that of the ending id included, over their number ** length_penalty.
    """

    tokens: tuple[int, ...]
    score: float
    reason: FinishReason
    stop_id: int | None = None


def check_beams(num_beams: int, length_penalty: float) -> None:
    """Refuse what cannot be searched. Raises InvalidRequest."""
    if not 1 <= num_beams <= MAX_BEAMS:
        raise InvalidRequest("num_beams", f"{num_beams} is not between 1 and {MAX_BEAMS}")
    if not -MAX_LENGTH_PENALTY <= length_penalty <= MAX_LENGTH_PENALTY:
        bounds = f"between {-MAX_LENGTH_PENALTY} and {MAX_LENGTH_PENALTY}"
        raise InvalidRequest("length_penalty", f"{length_penalty} is not {bounds}")


class BeamSearch:
    """One search. max_tokens >= 1 and min_tokens: of the text, ending id included; stop_ids end it from then on.

    early_stopping: end with the first num_beams texts, instead of when the live beams look too poor to better them.
    """

    def __init__(
        self,
        num_beams: int,
        length_penalty: float,
        stop_ids: frozenset[int],
        max_tokens: int,
        min_tokens: int = 0,
        early_stopping: bool = False,
    ) -> None:
        self.done = False
        self._num_beams = num_beams
        self._length_penalty = length_penalty
        self._stop_ids = stop_ids
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._early_stopping = early_stopping
        self._texts: list[tuple[int, ...]] = [()] * num_beams
        self._scores = torch.full((num_beams,), _NEVER)
        self._scores[0] = 0.0
        self._ended: list[Hypothesis] = []

    @property
    def length(self) -> int:
        """Tokens of every live beam."""
        return len(self._texts[0])

    def advance(self, logprobs: Tensor) -> list[tuple[int, int]]:
        """Take the next token's log-probabilities after each live beam, and go on.

        logprobs (num_beams, V) float32 without NaN, one row (1, V) at first -> of each beam that lives on, best first,
        the row that it continues and its new token; nothing once `done`.
        """
        totals = self._masked(logprobs) + self._scores.to(logprobs.device)[:, None]
        # As many as leave num_beams alive, if every beam ended in every way that it can.
        count = min(max(2, 1 + len(self._stop_ids)) * self._num_beams, totals.numel())
        found = totals.flatten().topk(count)
        scores = found.values.cpu()
        steps = [divmod(index, logprobs.shape[1]) for index in found.indices.tolist()]
        ends = torch.tensor([self._ends(token) for _, token in steps])
        self._keep_ended(steps[: self._num_beams], scores, ends)
        live = (scores + ends * _NEVER).topk(self._num_beams)
        steps = [steps[place] for place in live.indices.tolist()]
        self._scores = live.values
        self._texts = [self._text(step) for step in steps]
        self.done = bool(ends.all()) or not self._can_improve()
        last = len(logprobs) - 1  # of the single row at first, all beams are children
        return [] if self.done else [(min(parent, last), token) for parent, token in steps]

    def best(self) -> Hypothesis:
        """The text with the highest score; once `done`."""
        return self._ended[0]

    def _masked(self, logprobs: Tensor) -> Tensor:
        stops = [token for token in self._stop_ids if token < logprobs.shape[1]]
        if self.length >= self._min_tokens or not stops:
            return logprobs
        return logprobs.index_fill(1, torch.tensor(stops, device=logprobs.device), -torch.inf)

    def _ends(self, token: int) -> bool:
        return token in self._stop_ids or self.length + 1 == self._max_tokens

    def _text(self, step: _Step) -> tuple[int, ...]:
        parent, token = step
        return (*self._texts[parent], token)

    def _keep_ended(self, steps: Sequence[_Step], scores: Tensor, ends: Tensor) -> None:
        """Keep the best num_beams of all that have ended; steps: the best num_beams, which alone may join them."""
        divided = (scores / (self.length + 1) ** self._length_penalty).tolist()
        for step, score, has_ended in zip(steps, divided, ends.tolist(), strict=False):
            if has_ended:
                self._ended.append(self._hypothesis(step, score))
        self._ended = sorted(self._ended, key=lambda ended: -ended.score)[: self._num_beams]

    def _hypothesis(self, step: _Step, score: float) -> Hypothesis:
        parent, token = step
        if token in self._stop_ids:
            return Hypothesis(self._texts[parent], score, "stop", token)
        return Hypothesis(self._text(step), score, "length")

    def _can_improve(self) -> bool:
        """Whether the best live beam, as if it ended here, beats the worst of num_beams ended ones.

        A guess where length_penalty lets scores grow with the length: transformers' own, kept for equal results.
        """
        if len(self._ended) < self._num_beams:
            return True
        possible = float(self._scores[0] / self.length**self._length_penalty)
        return possible > self._ended[-1].score and not self._early_stopping
