"""When a text would be ready, going by how long an engine's steps take and how many tokens its texts have.

Learns from steps and ends. Knows no queue and no engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from typing import Protocol

from models.generation.request import Finished, Request

from .step_cost import StepCost

_WEIGHT = 0.05  # of the latest text in the average; the first ones count alike


class QueuedRequest(Protocol):
    """A text that was asked for, and how many tokens it has so far."""

    @property
    def request(self) -> Request: ...

    @property
    def made(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Ready:
    """When a text would begin and end, in seconds from now; alone_s: when it would end if nothing else were there."""

    begins_s: float
    ends_s: float
    alone_s: float


class GenerationTimes:
    """places: how many texts are in a step at most."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._step = StepCost()
        self._share = self._uncached = 1.0
        self._ended = 0

    def stepped(self, texts: int, prompt_tokens: int, seconds: float) -> None:
        """A step has computed the next tokens of so many texts, and so many tokens of prompts."""
        self._step.took(texts, prompt_tokens, seconds)

    def ended(self, request: Request, finished: Finished) -> None:
        """A text has come to its end."""
        usage = finished.usage
        if finished.reason in ("stop", "length") and request.max_tokens:
            self._ended += 1
            weight = max(_WEIGHT, 1 / self._ended)
            self._share += weight * (usage.completion / request.max_tokens - self._share)
            self._uncached += weight * (1 - usage.cached / len(request.prompt) - self._uncached)

    def expected(self, request: Request) -> float:
        """How many tokens a text will have: so large a part of those allowed as the latest had."""
        return max(1.0, request.min_tokens, self._share * request.max_tokens)

    def ready(self, request: Request, before: Sequence[QueuedRequest], others: int = 0) -> Ready:
        """When a text would be ready, were it asked for now.

        before: those that run and wait and come before it, in their order; others: how many there are with those that
        come after it, which share the steps.
        """
        places = self._places or max(len(before), others) + 1
        running, waiting = before[:places], before[places:]
        texts = min(max(len(before), others) + 1, places)
        step_s = self._step.texts_s(texts) + self._step.prompt_token_s * self._step.prompt_tokens
        unread = self._prompt(request) + sum(self._prompt(asked.request) for asked in running if not asked.made)
        ends = [max(1.0, self.expected(asked.request) - asked.made) for asked in running]
        heapify(ends)
        for asked in waiting:
            heapreplace(ends, ends[0] + self.expected(asked.request))
        steps = ends[0] if waiting or len(running) == places else min(1, len(running))  # one runs already
        begins_s = steps * step_s + self._step.prompts_s(unread, texts)  # the prompts of those that wait are in steps
        tokens = self.expected(request)
        alone_s = self._step.prompts_s(self._prompt(request), 0) + tokens * self._step.texts_s(1)
        return Ready(begins_s, begins_s + tokens * step_s, alone_s)

    def _prompt(self, request: Request) -> float:
        """How many tokens of a prompt will be computed: so large a part of it as of the latest."""
        return self._uncached * len(request.prompt)
