"""What a model knows of everyday English, which training on code should not cost it.

Owns the probe: sentences, each with one of the same meaning in other words and one of other meaning in similar words.
"""

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
    """sentence, paraphrase: the same in other words; near_miss: something else in similar words."""

    sentence: str
    paraphrase: str
    near_miss: str


_ITEMS = TypeAdapter(tuple[ProbeItem, ...])


@cache
def probe_items() -> tuple[ProbeItem, ...]:
    """The probe, always in the same order."""
    return _ITEMS.validate_json(resources.files(__package__).joinpath("english.json").read_bytes())


def probe_score(encode: Callable[[Sequence[str]], Vectors]) -> float:
    """MRR@10 of each sentence's paraphrase among all paraphrases and all near misses.

    encode: texts -> vectors (N, D). all-MiniLM-L6-v2 has 0.88.
    """
    items = probe_items()
    texts = [item.sentence for item in items] + [item.paraphrase for item in items] + [item.near_miss for item in items]
    vectors = finish(np.asarray(encode(texts)), True)
    found = rank_metrics(vectors[: len(items)], vectors[len(items) :], [{index} for index in range(len(items))])
    return found.mean_reciprocal_rank
