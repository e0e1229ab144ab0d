"""The state of one completion's sampling: its options, its position, and the tokens that penalties count.

It follows from the prompt and the tokens so far, so a preempted completion rebuilds it and continues as before.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from . import counter_rng
from .types import Sampling

GREEDY_BELOW = 1e-5
"""Temperature below which sampling is greedy: only tokens with nearly equal logits would have a chance."""

Ids = NDArray[np.int64]
Values = NDArray[np.float32]


class TokenHistory:
    """The distinct tokens of a prompt and its completion, with their counts in the completion."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._ids = array("q", self._places)
        self._counts = array("f", bytes(4 * len(self._ids)))

    def append(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token)
            self._counts.append(0)
        self._counts[place] += 1

    @property
    def ids(self) -> Ids:
        """(N,), in order of first occurrence."""
        return np.array(self._ids, np.int64)

    @property
    def counts(self) -> Values:
        """(N,); 0 for tokens that only the prompt has."""
        return np.array(self._counts, np.float32)


class SamplerState:
    """One completion's sampling. stop_ids are masked until min_tokens exist.

    sampling: as `check_sampling` accepts it. vocabulary: width of the logits. position: tokens made so far.
    history: None if no penalty needs it.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], vocabulary: int, stop_ids: frozenset[int], min_tokens: int
    ) -> None:
        self.sampling = sampling
        self.position = 0
        self.is_greedy = sampling.temperature < GREEDY_BELOW
        self.top_k = min(sampling.top_k, vocabulary) or vocabulary
        self.is_filtered = self.top_k < vocabulary or sampling.top_p < 1 or sampling.min_p > 0
        self._min_tokens = min_tokens
        self._biases = _arrays(sampling.logit_bias.items())
        masked = ((token, -np.inf) for token in sorted(stop_ids) if token < vocabulary)
        self._early_biases = _arrays([*sampling.logit_bias.items(), *masked])
        self.history = _history(sampling, prompt)

    def append(self, token: int) -> None:
        self.position += 1
        if self.history is not None:
            self.history.append(token)

    @property
    def rng_key(self) -> int:
        """Key of the next token's random numbers; see counter_rng.key."""
        return counter_rng.key(self.sampling.seed, self.position)

    @property
    def biases(self) -> tuple[Ids, Values]:
        """Token ids (N,) and what to add to their logits (N,) for the next token."""
        return self._early_biases if self.position < self._min_tokens else self._biases


def _arrays(biases: Iterable[tuple[int, float]]) -> tuple[Ids, Values]:
    pairs = list(biases)
    return np.array([token for token, _ in pairs], np.int64), np.array([value for _, value in pairs], np.float32)


def _history(sampling: Sampling, prompt: Sequence[int]) -> TokenHistory | None:
    """Only the repetition penalty counts the prompt."""
    if sampling.repetition_penalty != 1:
        return TokenHistory(prompt)
    return TokenHistory(()) if sampling.presence_penalty or sampling.frequency_penalty else None
