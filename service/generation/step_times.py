"""When a completion would be ready, from how long an engine's steps take and how many tokens completions have."""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace

from models.generation.types import Finished, Request

from ..admission import LinearCost

_DECAY = 0.98
"""Weight of earlier measurements of prompts after another one."""
_WEIGHT = 0.05
"""Weight of the latest step or completion in an average; the first completions are averaged equally."""


class StepCost:
    """The time of a step: a part for the completions in it, and a part for each prompt token computed beside them.

    The two are learned apart: a completion's next token costs many times what a token of a prompt does.
    prompt_token_s: seconds for a prompt token. prompt_tokens: their average in a step; most_prompt_tokens: the maximum.
    """

    def __init__(self) -> None:
        self.prompt_tokens = 0.0
        self.most_prompt_tokens = 0
        self._completions = LinearCost()
        self._most_completions = 0
        self._tokens = self._seconds = 0.0

    @property
    def prompt_token_s(self) -> float:
        return self._seconds / self._tokens if self._tokens else 0.0

    def observe(self, completions: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step that computed the next token of each completion, and these tokens of prompts."""
        if prompt_tokens:
            self._tokens = _DECAY * self._tokens + prompt_tokens
            self._seconds = _DECAY * self._seconds + max(0.0, seconds - self._completions.expected_s(completions))
        if completions:
            self._completions.observe(completions, max(0.0, seconds - self.prompt_token_s * prompt_tokens))
        self._most_completions = max(self._most_completions, completions)
        self.most_prompt_tokens = max(self.most_prompt_tokens, prompt_tokens)
        self.prompt_tokens += _WEIGHT * (prompt_tokens - self.prompt_tokens)

    def completions_s(self, completions: int) -> float:
        """Seconds for a step with this many completions and no prompts; 0 while nothing is known.

        Above the largest number seen plus one, it scales linearly: the learned slope may be wrong there. One more than
        seen is estimated by the learned cost, so that larger steps are tried at all.
        """
        known = min(completions, self._most_completions + 1)
        return self._completions.expected_s(known) * completions / known if known else self._completions.expected_s(0)

    def prompts_s(self, tokens: float, completions: int) -> float:
        """Seconds for this many tokens of prompts, beside completions that get a token in each of the steps."""
        steps = tokens // self.most_prompt_tokens if self.most_prompt_tokens else 0
        return self.prompt_token_s * tokens + steps * self.completions_s(completions)


@dataclass(frozen=True, slots=True)
class Ready:
    """When a completion would begin and end, in seconds from now; alone_s: when it would end on an idle engine."""

    begins_s: float
    ends_s: float
    alone_s: float


class GenerationTimes:
    """Learns from steps and ends. slots: how many completions a step has at most; 0: any number."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._step = StepCost()
        self._share = self._uncached = 1.0
        self._ended = 0
        self.stepped = self._step.observe

    def ended(self, request: Request, finished: Finished) -> None:
        """Learn from the end of a completion."""
        usage = finished.usage
        if finished.reason in ("stop", "length") and request.max_tokens:
            self._ended += 1
            weight = max(_WEIGHT, 1 / self._ended)
            self._share += weight * (usage.completion / request.max_tokens - self._share)
            self._uncached += weight * (1 - usage.cached / len(request.prompt) - self._uncached)

    def expected(self, request: Request) -> float:
        """How many tokens a completion will have: the share of its `max_tokens` that recent ones had."""
        return max(1.0, request.min_tokens, self._share * request.max_tokens)

    def ready(self, request: Request, before: Sequence[tuple[Request, int]], others: int = 0) -> Ready:
        """When a completion would be ready, if it were requested now.

        before: those that run or wait and come before it, in their order, each with the tokens that it has so far.
        others: how many there are in all; those that come after it share the steps too.
        """
        slots = self._slots or max(len(before), others) + 1
        running, waiting = before[:slots], before[slots:]
        completions = min(max(len(before), others) + 1, slots)
        step_s = self._step.completions_s(completions) + self._step.prompt_token_s * self._step.prompt_tokens
        unread = self._prompt_tokens(request) + sum(self._prompt_tokens(other) for other, made in running if not made)
        ends = [max(1.0, self.expected(other) - made) for other, made in running]
        heapify(ends)
        for other, _ in waiting:
            heapreplace(ends, ends[0] + self.expected(other))
        steps = ends[0] if waiting or len(running) == slots else min(1, len(running))  # one runs already
        # The prompts of those that wait are in the average step.
        begins_s = steps * step_s + self._step.prompts_s(unread, completions)
        tokens = self.expected(request)
        alone_s = self._step.prompts_s(self._prompt_tokens(request), 0) + tokens * self._step.completions_s(1)
        return Ready(begins_s, begins_s + tokens * step_s, alone_s)

    def _prompt_tokens(self, request: Request) -> float:
        """How many tokens of a prompt will be computed: the share of it that was not cached for recent ones."""
        return self._uncached * len(request.prompt)
