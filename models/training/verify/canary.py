"""Texts that are sent over the bus after a swap, and the vectors that must come back.

Owns the texts and the file beside a report that keeps them with the candidate's own vectors. Knows no bus.
"""

import json
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save

from ...encoders.base import Vectors
from ...weights.durable import write_durably
from .english import probe_items

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


def live_round_texts() -> list[str]:
    """The 32 texts of a live round, short ones: sentences and code."""
    return [item.sentence for item in probe_items()[:_SENTENCES]] + list(_CODE)


def write_live_round(report: Path, texts: list[str], vectors: Vectors) -> None:
    """Keep texts (N) and their vectors (N, D) float32, as they must come back, in the folder of a report."""
    write_durably(report / FILE, save({"vectors": vectors}, {"texts": json.dumps(texts)}))


def read_live_round(report: Path) -> tuple[list[str], Vectors]:
    """What write_live_round kept: another release may have chosen other texts. Raises OSError, SafetensorError."""
    with safe_open(report / FILE, "np") as file:
        vectors: Vectors = file.get_tensor("vectors")
        return json.loads(file.metadata()["texts"]), vectors
