"""What the sampling of one completion remembers: how it was asked for, its position, and which tokens it has seen.

It follows from the prompt and the tokens made, so that a preempted completion builds it anew and goes on as before.
Knows no logits.
"""

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from . import counter_rng
from .request import Sampling

GREEDY_BELOW = 1e-5
"""At a temperature below, only tokens whose logits hardly differ would share the odds."""

Ids = NDArray[np.int64]
Values = NDArray[np.float32]


class TokenHistory:
    """The distinct tokens of a prompt and its text, with how often the text has each; both grow by what is new."""

    def __init__(self, prompt: Iterable[int]) -> None:
        self._places = {token: place for place, token in enumerate(dict.fromkeys(prompt))}
        self._ids = array("q", self._places)
        self._counts = array("f", bytes(4 * len(self._ids)))

    def append(self, token: int) -> None:
        """Take the text's next token."""
        place = self._places.setdefault(token, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token)
            self._counts.append(0)
        self._counts[place] += 1

    @property
    def ids(self) -> Ids:
        """(N,), in the order in which they were first seen."""
        return np.array(self._ids, np.int64)

    @property
    def counts(self) -> Values:
        """(N,), those of the prompt alone 0."""
        return np.array(self._counts, np.float32)


class SamplerState:
    """One completion's sampling. stop_ids are masked until min_tokens are made; `check` has passed `sampling`.

    vocabulary: width of the logits; stop_ids beyond it are nothing to mask.
    """

    def __init__(
        self, sampling: Sampling, prompt: Sequence[int], vocabulary: int, stop_ids: frozenset[int], min_tokens: int
    ) -> None:
        self.sampling = sampling
        self.position = 0
        """Tokens made so far."""
        self.is_greedy = sampling.temperature < GREEDY_BELOW
        self.top_k = min(sampling.top_k, vocabulary) or vocabulary
        self.is_filtered = self.top_k < vocabulary or sampling.top_p < 1 or sampling.min_p > 0
        self._min_tokens = min_tokens
        self._biases = _added(sampling.logit_bias.items())
        masked = ((token, -np.inf) for token in sorted(stop_ids) if token < vocabulary)
        self._early_biases = _added([*sampling.logit_bias.items(), *masked])
        self.history = _history(sampling, prompt)
        """None where no penalty asks for it."""

    def append(self, token: int) -> None:
        """Take the token that was made."""
        self.position += 1
        if self.history is not None:
            self.history.append(token)

    @property
    def noise_start(self) -> int:
        """Of the noise for the next token; see `noise.start`."""
        return counter_rng.start(self.sampling.seed, self.position)

    @property
    def biases(self) -> tuple[Ids, Values]:
        """Token ids (N,) and what is added to their logits (N,) for the next token."""
        return self._early_biases if self.position < self._min_tokens else self._biases


def _added(biases: Iterable[tuple[int, float]]) -> tuple[Ids, Values]:
    pairs = list(biases)
    return np.array([token for token, _ in pairs], np.int64), np.array([value for _, value in pairs], np.float32)


def _history(sampling: Sampling, prompt: Sequence[int]) -> TokenHistory | None:
    """The prompt counts for the repetition penalty alone."""
    if sampling.repetition_penalty != 1:
        return TokenHistory(prompt)
    return TokenHistory(()) if sampling.presence_penalty or sampling.frequency_penalty else None
