"""Beam search with the results of transformers' `generate`: the search, and the sequences of one request's beams."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, log_softmax

from .scheduler import Scheduler
from .sequence import Sequence
from .types import FinishReason, Request

_NEVER = -1e9
"""The score of what must not be chosen, finite as in transformers: sums with it keep their order."""
_Step: TypeAlias = tuple[int, int]
"""The index of a live beam, and the token that continues it."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished text. tokens: without stop_id, the token that ended it; None if max_tokens did.

    score: the sum of its log-probabilities, the one of stop_id included, divided by its length ** length_penalty.
    """

    tokens: tuple[int, ...]
    score: float
    reason: FinishReason
    stop_id: int | None = None


@dataclass(slots=True)
class BeamSearch:
    """One search. max_tokens >= 1 and min_tokens count the ending token too; stop_ids end a text from min_tokens on."""

    num_beams: int
    length_penalty: float
    stop_ids: frozenset[int]
    max_tokens: int
    min_tokens: int = 0
    done: bool = field(default=False, init=False)
    _texts: list[tuple[int, ...]] = field(init=False)
    _scores: Tensor = field(init=False)
    _finished: list[Hypothesis] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._texts = [()] * self.num_beams
        self._scores = torch.full((self.num_beams,), _NEVER)
        self._scores[0] = 0.0

    @property
    def length(self) -> int:
        """Tokens of every live beam."""
        return len(self._texts[0])

    def advance(self, logprobs: Tensor) -> list[tuple[int, int]]:
        """Continue every live beam by one token.

        logprobs (num_beams, V) float32 without NaN, one row (1, V) at first -> for each new live beam, best first, the
        row that it continues and its new token; empty once `done`.
        """
        totals = self._masked(logprobs) + self._scores.to(logprobs.device)[:, None]
        # Enough that num_beams stay alive even if every beam ends in every possible way.
        count = min(max(2, 1 + len(self.stop_ids)) * self.num_beams, totals.numel())
        found = totals.flatten().topk(count)
        scores = found.values.cpu()
        steps = [divmod(index, logprobs.shape[1]) for index in found.indices.tolist()]
        ends = torch.tensor([self._ends(token) for _, token in steps])
        self._keep_finished(steps[: self.num_beams], scores, ends)
        live = (scores + ends * _NEVER).topk(self.num_beams)
        steps = [steps[place] for place in live.indices.tolist()]
        self._scores = live.values
        self._texts = [self._text(step) for step in steps]
        self.done = bool(ends.all()) or not self._can_improve()
        last = len(logprobs) - 1  # at first all beams continue the single row
        return [] if self.done else [(min(parent, last), token) for parent, token in steps]

    def best(self) -> Hypothesis:
        """The text with the highest score, once `done`."""
        return self._finished[0]

    def _masked(self, logprobs: Tensor) -> Tensor:
        stops = [token for token in self.stop_ids if token < logprobs.shape[1]]
        if self.length >= self.min_tokens or not stops:
            return logprobs
        return logprobs.index_fill(1, torch.tensor(stops, device=logprobs.device), -torch.inf)

    def _ends(self, token: int) -> bool:
        return token in self.stop_ids or self.length + 1 == self.max_tokens

    def _text(self, step: _Step) -> tuple[int, ...]:
        parent, token = step
        return (*self._texts[parent], token)

    def _keep_finished(self, steps: Rows[_Step], scores: Tensor, ends: Tensor) -> None:
        """Keep the best num_beams of all finished texts. steps: the best num_beams of this step, which may join."""
        divided = (scores / (self.length + 1) ** self.length_penalty).tolist()
        for step, score, has_ended in zip(steps, divided, ends.tolist(), strict=False):
            if has_ended:
                self._finished.append(self._hypothesis(step, score))
        self._finished = sorted(self._finished, key=lambda finished: -finished.score)[: self.num_beams]

    def _hypothesis(self, step: _Step, score: float) -> Hypothesis:
        parent, token = step
        if token in self.stop_ids:
            return Hypothesis(self._texts[parent], score, "stop", token)
        return Hypothesis(self._text(step), score, "length")

    def _can_improve(self) -> bool:
        """Whether the best live beam would beat the worst of num_beams finished texts if it ended here.

        transformers' heuristic, inexact if length_penalty makes scores grow with the length.
        """
        if len(self._finished) < self.num_beams:
            return True
        return float(self._scores[0] / self.length**self.length_penalty) > self._finished[-1].score


class BeamGroup:
    """The sequences of one request's beams. first: represents the request. beams: live ones, in the search's order.

    all: the live and the idle ones.
    """

    def __init__(self, request: Request, order: int, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._search = BeamSearch(
            request.num_beams, request.length_penalty, request.stop_ids, request.max_tokens, request.min_tokens
        )
        siblings = tuple(Sequence(request, order, None, None) for _ in range(request.num_beams - 1))
        self.first = Sequence(request, order, None, None, siblings=siblings)
        self.all = (self.first, *siblings)
        self.beams = [self.first]

    def advance(self, rows: Tensor) -> Hypothesis | None:
        """Continue by one token, given the beams' logits (R, V) -> the best text, once it is found."""
        steps = self._search.advance(log_softmax(rows, dim=-1))
        if self._search.done:
            return self._search.best()
        self.beams = self._follow(steps)
        return None

    def _follow(self, steps: list[_Step]) -> list[Sequence]:
        """A sequence for each (parent, token): the parent's own, or if that is taken one that does not live on."""
        texts = [[*self.beams[parent].tokens, token] for parent, token in steps]
        parents = [self.beams[parent] for parent, _ in steps]
        free = [beam for beam in self.all if beam not in parents]
        beams: list[Sequence] = []
        for parent in parents:
            beam = parent
            if parent in beams:
                beam = free.pop()
                self._scheduler.fork(beam, parent)
            beams.append(beam)
        for beam, text in zip(beams, texts, strict=True):
            beam.tokens = text
        return beams
