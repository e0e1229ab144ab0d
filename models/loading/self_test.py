"""Self-tests of embedding models at load, against golden vectors or those of sentence-transformers.

`python -m models.loading.self_test MODEL` writes a model's golden file anew, with sentence-transformers' own encode.
"""

import base64
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from ..catalogue import ModelSpec, load_catalogue
from ..encoders.base import Encoder, TextOptions, Tokens, Vectors, cosine_rows
from ..encoders.modules import detach_modules, read_sentence_transformer
from ..errors import ModelUnavailable, SelfTestFailed
from ..weights import hub, model_files
from .load_cache import LoadCache

GOLDEN = Path(__file__).parent / "golden"
FP32_COSINE = 0.99999
CONSISTENT_COSINE = 0.9999
ANOTHER_MODEL = "; what its folder or its entry asks for is computed in another way here, so choose another model"
ANOTHER_GRAPH = (
    "; its graph lets the texts of a batch change each other, as some quantised ones do: choose another graph"
)
HIGHER_PRECISION = "; choose a higher precision, or accept this one with a lower `min_cosine` in its entry"
"""Advice in the messages of failed tests."""
SETUP_SUFFIXES = (".json", ".txt", ".model", ".jinja")
TEST_TEXTS = (
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


def reference_vectors(spec: ModelSpec, digest: str, folder: Path, cache: LoadCache) -> tuple[Vectors, str]:
    """The vectors (12, dimensions) of the test texts that a model must reproduce, and their source.

    Golden ones if there are any for these very weights, else those of sentence-transformers' own encode in float32, for
    which the model is read once and the vectors are cached. Raises ModelUnavailable.
    """
    stored = golden_vectors(GOLDEN / f"{spec.id}.json", digest)
    if stored is not None:
        return stored, "its golden vectors"
    key = f"{digest} {_setup_digest(folder)} {spec.causal} {spec.append_eos} {TEST_TEXTS}"
    vectors = cache.vectors(key)
    if vectors is None:
        source = read_sentence_transformer(spec, folder)
        vectors = encode_test_texts(source)
        detach_modules(source)
        cache.keep_vectors(key, vectors)
    return vectors, "sentence-transformers"


def _setup_digest(folder: Path) -> str:
    """SHA-256 of all files that say how the weights are used: configurations, tokeniser, vocabulary."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in SETUP_SUFFIXES and file.is_file())
    named = "".join(f"{file.relative_to(folder)} {model_files.file_sha256(file)}\n" for file in files)
    return hashlib.sha256(named.encode()).hexdigest()


def golden_vectors(file: Path, digest: str) -> Vectors | None:
    """The golden vectors (12, dimensions) of the test texts; None unless made from these weights and texts."""
    if not file.is_file():
        return None
    golden = json.loads(file.read_text("utf-8"))
    if golden["weights_sha256"] != digest or golden["texts"] != list(TEST_TEXTS):
        return None
    return np.frombuffer(base64.b64decode(golden["vectors"]), dtype="<f4").reshape(len(TEST_TEXTS), -1)


def encode_test_texts(source: SentenceTransformer) -> Vectors:
    """Vectors (12, dimensions) of the test texts by sentence-transformers alone."""
    vectors: Vectors = source.encode(list(TEST_TEXTS), prompt="", show_progress_bar=False)
    return vectors


def self_test(encoder: Encoder, expected: Vectors, reference: str, min_cosine: float) -> None:
    """Encode the test texts in one batch and compare with `expected` (12, dimensions).

    Texts too long for the encoder are left out: an entry may set a lower limit than the model's own. min_cosine: the
    tolerance for anything but plain fp32. Raises SelfTestFailed where a cosine is too low.
    """
    fitting = _fitting(encoder)
    found = encoder.encode(list(fitting.values()))
    exact = encoder.dtype == "fp32" and encoder.quantization is None
    required, advice = (FP32_COSINE, ANOTHER_MODEL) if exact else (min_cosine, HIGHER_PRECISION)
    if (values := found.shape[1]) != (wanted := expected.shape[1]):
        reason = f"its vectors have {values} values here and {wanted} in {reference}"
        raise ModelUnavailable(encoder.model, f"{reason}; give it an entry whose folder says the same everywhere")
    _require(encoder, cosine_rows(found, expected[list(fitting)]), required, reference, advice)


def consistency_test(encoder: Encoder) -> None:
    """For a model without reference vectors: each test text must give the same vector alone and in a batch.

    Raises SelfTestFailed.
    """
    fitting = list(_fitting(encoder).values())
    alone = np.concatenate([encoder.encode([tokens]) for tokens in fitting])
    cosines = cosine_rows(encoder.encode(fitting), alone)
    _require(encoder, cosines, CONSISTENT_COSINE, "itself without neighbours", ANOTHER_GRAPH)


def graph_test(encoder: Encoder, spec: ModelSpec, digest: str) -> None:
    """Test an ONNX graph against its golden vectors, or for consistency without any. Raises SelfTestFailed."""
    expected = golden_vectors(GOLDEN / f"{spec.id}.json", digest)
    if expected is None:
        consistency_test(encoder)
    else:
        self_test(encoder, expected, "its golden vectors", spec.min_cosine)


def _fitting(encoder: Encoder) -> dict[int, Tokens]:
    """The tokens of the test texts that requests may have: neither blank nor too long."""
    tokens = encoder.tokenize(TEST_TEXTS, TextOptions(prompt="", truncate="error"))
    fitting = {i: item for i, item in enumerate(tokens) if isinstance(item, Tokens) and TEST_TEXTS[i].strip()}
    if not fitting:
        reason = f"{encoder.max_tokens} tokens are too few to test it with; give a higher `max_tokens` in its entry"
        raise ModelUnavailable(encoder.model, reason)
    return fitting


def _require(encoder: Encoder, cosines: Vectors, required: float, reference: str, advice: str) -> None:
    cosine = float(cosines.min())
    if not cosine >= required:  # not "<", so that NaN fails too
        raise SelfTestFailed(encoder.model, cosine, required, reference, advice)


def write_golden(model: str, file: Path) -> None:
    spec = load_catalogue().get(model)
    folder = hub.locate(spec)
    vectors = encode_test_texts(read_sentence_transformer(spec, folder)).astype("<f4")
    made_with = {name: metadata.version(name) for name in ("sentence-transformers", "transformers", "torch")}
    golden = {
        "weights_sha256": model_files.check_weights(spec, folder),
        "made_with": made_with,
        "texts": TEST_TEXTS,
        "vectors": base64.b64encode(vectors.tobytes()).decode(),
    }
    file.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    name = sys.argv[1]
    write_golden(name, GOLDEN / f"{name}.json")
