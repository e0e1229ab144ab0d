"""The probe of everyday English, which a training on code should not make worse."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from pydantic import TypeAdapter

from ...encoders.base import Vectors, finish
from .metrics import rank_metrics


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """A sentence. paraphrase: the same meaning in other words; near_miss: another meaning in similar words."""

    sentence: str
    paraphrase: str
    near_miss: str


_ITEMS = TypeAdapter(tuple[ProbeItem, ...])


@cache
def probe_items() -> tuple[ProbeItem, ...]:
    """The items of the probe, in a fixed order."""
    return _ITEMS.validate_json(resources.files(__package__).joinpath("english.json").read_bytes())


def probe_score(encode: Callable[[Sequence[str]], Vectors]) -> float:
    """MRR@10 of each sentence's paraphrase among all paraphrases and near misses.

    encode: texts -> vectors (N, D). all-MiniLM-L6-v2 has 0.88.
    """
    items = probe_items()
    columns = zip(*((item.sentence, item.paraphrase, item.near_miss) for item in items), strict=True)
    texts = [text for column in columns for text in column]
    vectors = finish(np.asarray(encode(texts)), True)
    found = rank_metrics(vectors[: len(items)], vectors[len(items) :], [{index} for index in range(len(items))])
    return found.mean_reciprocal_rank
