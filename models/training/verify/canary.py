"""The texts that a canary check embeds over the bus after a swap, and the vectors that must come back."""

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
