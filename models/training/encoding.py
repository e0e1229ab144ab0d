"""Vectors of many texts, computed as they are served, in batches of similar length."""

from collections.abc import Sequence

import numpy as np

from ..encoders.base import Encoder, TextOptions, Tokens, Vectors, finish

PLAIN = TextOptions()
ANCHOR_PROMPTS = ("query", "retrieval.query", "search_query")
DOCUMENT_PROMPTS = ("document", "passage", "retrieval.passage", "search_document", "corpus")
BATCH_TOKENS = 8192
"""Tokens of a batch, padding included: small beside the weights of any model."""


def encode_texts(encoder: Encoder, texts: Sequence[str], options: TextOptions = PLAIN) -> Vectors:
    """Vectors (N, dimensions) float32, in order, as a request gets them: normalised where the entry says so.

    Raises OutOfDeviceMemory.
    """
    return finish(pool_texts(encoder, texts, options), encoder.normalizes)


def pool_texts(encoder: Encoder, texts: Sequence[str], options: TextOptions = PLAIN) -> Vectors:
    """The vectors of encode_texts before `finish`, which replaces a vector that has a NaN by zeros."""
    vectors = np.empty((len(texts), encoder.dimensions), dtype=np.float32)
    tokens = token_lists(encoder, texts, options)
    for batch in _batches([len(each) for each in tokens]):
        vectors[batch] = encoder.encode([tokens[index] for index in batch])
    return vectors


def unit_vectors(encoder: Encoder, texts: Sequence[str], names: Sequence[str]) -> Vectors:
    """Vectors (N, dimensions) of unit length, with the options of `options_named`. Raises OutOfDeviceMemory."""
    return finish(pool_texts(encoder, texts, options_named(encoder, names)), True)


def token_lists(encoder: Encoder, texts: Sequence[str], options: TextOptions = PLAIN) -> list[Tokens]:
    """The tokens of each text, truncated to the model's limit."""
    return [each for each in encoder.tokenize(texts, options) if isinstance(each, Tokens)]


def options_named(encoder: Encoder, names: Sequence[str]) -> TextOptions:
    """Options with the first name that is a task or a prompt of the encoder; without one, those of a plain request."""
    for name in names:
        if name in encoder.tasks:
            return TextOptions(task=name)
        if encoder.prompts.get(name):
            return TextOptions(prompt_name=name)
    return PLAIN


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """The indices of texts, grouped by similar length."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches
