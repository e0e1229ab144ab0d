"""Texts to vectors for whoever judges a model: as it is served, in batches of similar length. Knows no measure."""

import time
from collections.abc import Sequence

import numpy as np

from ...encoders.base import Encoder, TextOptions, Tokens, Vectors, finish

PLAIN = TextOptions()
BATCH_TOKENS = 8192
"""Of a batch with its padding: little beside the weights of any model."""


def encode_texts(encoder: Encoder, texts: Sequence[str], options: TextOptions = PLAIN) -> Vectors:
    """Vectors (N, dimensions) float32, in order, as a request gets them: scaled where the entry says.

    Raises OutOfDeviceMemory.
    """
    return finish(pool_texts(encoder, texts, options), encoder.normalizes)


def pool_texts(encoder: Encoder, texts: Sequence[str], options: TextOptions = PLAIN) -> Vectors:
    """The same before they are finished: `finish` makes a zero vector of one that has a NaN."""
    vectors = np.empty((len(texts), encoder.dimensions), dtype=np.float32)
    tokens = token_lists(encoder, texts, options)
    for batch in _batches([len(each) for each in tokens]):
        vectors[batch] = encoder.encode([tokens[index] for index in batch])
    return vectors


def token_lists(encoder: Encoder, texts: Sequence[str], options: TextOptions = PLAIN) -> list[Tokens]:
    """The tokens of texts, of those that are too long the first ones."""
    return [each for each in encoder.tokenize(texts, options) if isinstance(each, Tokens)]


def options_named(encoder: Encoder, names: Sequence[str]) -> TextOptions:
    """The first of the names that is a task or a prompt of the encoder; where none is, what a plain request gets."""
    for name in names:
        if name in encoder.tasks:
            return TextOptions(task=name)
        if encoder.prompts.get(name):
            return TextOptions(prompt_name=name)
    return PLAIN


def speed_ratio(live: Encoder, candidate: Encoder, texts: Sequence[str], repeats: int = 7) -> float:
    """Time of a batch of these texts, candidate to live; each the best of several, taken in turns."""
    contenders = [(encoder, token_lists(encoder, texts)) for encoder in (live, candidate)]
    best = [float("inf")] * 2
    for _ in range(repeats):
        for which, (encoder, tokens) in enumerate(contenders):
            start = time.perf_counter()
            encoder.encode(tokens)
            best[which] = min(best[which], time.perf_counter() - start)
    return best[1] / best[0]


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """The indices of texts, in batches of similar length."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches
