"""Self-tests at load: does the model give the vectors that it should?

Owns the golden vectors, the probe texts and the tolerances. `python -m models.verify MODEL` writes a model's golden
file anew, with sentence-transformers' own encode.
"""

import base64
import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from . import hub
from .catalogue import load_catalogue
from .encoders.base import Encoder, TextOptions, Tokens, Vectors, cosine_rows
from .encoders.modules import read_sentence_transformer
from .errors import SelfTestFailed

GOLDEN = Path(__file__).parent / "golden"
REQUIRED_COSINE = {"fp32": 0.99999, "bf16": 0.999}
PROBES = (
    "def hello(): pass",
    "how do I read a file line by line",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        pass",
    "SELECT name, count(*) FROM users GROUP BY name HAVING count(*) > 1;",
    "for (let i = 0; i < rows.length; i += 1) { total += rows[i].price * rows[i].amount; }",
    "The quick brown fox jumps over the lazy dog.",
    'fn main() { println!("{}", std::env::args().skip(1).collect::<Vec<_>>().join(" ")); }',
    "Zürich, naïve café, Ελλάδα, 東京",
    'raise ValueError(f"expected {expected!r}, got {found!r}")',
    "",
    "binary search over a sorted array",
    "\n".join(f"def step_{i}(state):\n    return state + {i}" for i in range(16)),
)


def reference_vectors(model: str, digest: str, source: SentenceTransformer) -> tuple[Vectors, str]:
    """The vectors (12, dimensions) of the probe texts that a model must reproduce, and where they are from.

    Stored ones where there are any for these very weights, else those of sentence-transformers' own encode on
    `source`, which is to be in float32.
    """
    stored = golden_vectors(GOLDEN / f"{model}.json", digest)
    return (encode_probes(source), "sentence-transformers") if stored is None else (stored, "its golden vectors")


def golden_vectors(file: Path, digest: str) -> Vectors | None:
    """The stored vectors (12, dimensions) of the probe texts; None unless made from these weights and texts."""
    if not file.is_file():
        return None
    golden = json.loads(file.read_text("utf-8"))
    if golden["weights_sha256"] != digest or golden["texts"] != list(PROBES):
        return None
    return np.frombuffer(base64.b64decode(golden["vectors"]), dtype="<f4").reshape(len(PROBES), -1)


def encode_probes(source: SentenceTransformer) -> Vectors:
    """Vectors (12, dimensions) of the probe texts by sentence-transformers alone."""
    vectors: Vectors = source.encode(list(PROBES), prompt="", show_progress_bar=False)
    return vectors


def self_test(encoder: Encoder, expected: Vectors, reference: str) -> float:
    """Encode the probe texts in one batch and compare with `expected` (12, dimensions).

    Those too long for the encoder are left out: an entry may set a lower limit than the model's own.

    Returns the lowest cosine. Raises SelfTestFailed where it is below the tolerance of the encoder's dtype.
    """
    tokens = encoder.tokenize(PROBES, TextOptions(prompt="", truncate="error"))
    fitting = {i: item for i, item in enumerate(tokens) if isinstance(item, Tokens)}
    found = encoder.encode(list(fitting.values()))
    cosine = float(cosine_rows(found, expected[list(fitting)]).min())
    required = REQUIRED_COSINE[encoder.dtype]
    if not cosine >= required:  # not "<", so that NaN fails too
        raise SelfTestFailed(encoder.model, cosine, required, reference)
    return cosine


def write_golden(model: str, file: Path) -> None:
    """Write the golden file of a catalogue model."""
    spec = load_catalogue().get(model)
    folder = hub.locate(spec)
    vectors = encode_probes(read_sentence_transformer(folder)).astype("<f4")
    made_with = {name: metadata.version(name) for name in ("sentence-transformers", "transformers", "torch")}
    golden = {
        "weights_sha256": hub.check_weights(spec, folder),
        "made_with": made_with,
        "texts": PROBES,
        "vectors": base64.b64encode(vectors.tobytes()).decode(),
    }
    file.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    name = sys.argv[1]
    write_golden(name, GOLDEN / f"{name}.json")
