"""Texts that every model is checked with: everyday English, and those of the canary check after a swap."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.numpy import save

from ...encoders.base import Vectors, finish
from ...weights.durable import write_durably
from .metrics import rank_metrics

FILE = "vectors.safetensors"
_SENTENCES = 24
_CODE = (
    "def hello(): pass",
    "for (const row of rows) { total += row.price * row.amount; }",
    "SELECT name, count(*) FROM users GROUP BY name;",
    'fn main() { println!("{}", std::env::args().count()); }',
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        pass",
    "if err != nil { return nil, err }",
    "binary search over a sorted array",
    "public static int size(List<String> names) { return names.size(); }",
)


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """A sentence. paraphrase: the same meaning in other words; near_miss: another meaning in similar words."""

    sentence: str
    paraphrase: str
    near_miss: str


_ITEMS = TypeAdapter(tuple[ProbeItem, ...])


@cache
def probe_items() -> tuple[ProbeItem, ...]:
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


def canary_texts() -> list[str]:
    """The 32 short texts of a canary check: sentences and code."""
    return [item.sentence for item in probe_items()[:_SENTENCES]] + list(_CODE)


def write_canary(report: Path, texts: list[str], vectors: Vectors) -> None:
    """Write texts (N) and their finished vectors (N, D) float32 into the folder of a report."""
    write_durably(report / FILE, save({"vectors": vectors}, {"texts": json.dumps(texts)}))


def read_canary(report: Path) -> tuple[list[str], Vectors]:
    """What write_canary wrote; another release may have other texts. Raises OSError, SafetensorError."""
    with safe_open(report / FILE, "np") as file:
        vectors: Vectors = file.get_tensor("vectors")
        return json.loads(file.metadata()["texts"]), vectors
