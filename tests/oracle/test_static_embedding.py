"""Static embedding models, a tokeniser and a table of token vectors, against sentence-transformers' StaticEmbedding.

The tables are random, the tokeniser is that of all-MiniLM-L6-v2. Tolerance: 1e-6, in fp32.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
from tokenizers import Tokenizer

from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import Encoder, TextOptions, Tokens, Vectors, cosine_rows, finish
from models.errors import ModelUnavailable, TextTooLong
from models.loading.footprint import footprint
from models.loading.loader import LoadOptions, expected_bytes, load
from models.loading.plan import candidate, plan
from models.training.errors import CannotTrain
from models.training.fit.cost import check_trainable
from models.weights import model_files
from models.weights.hub import locate

PLAIN = TextOptions()
TEXTS = ["def hello(): pass", "x", "", "a b c d e f g h i j k l m n o p " * 40, "Zürich, 東京"]


def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(locate(load_catalogue().get("minilm")) / "tokenizer.json"))


def of(folder: Path, **fields: Any) -> ModelSpec:
    return load_catalogue({"mine": {"kind": "embedding", "folder": str(folder), **fields}}).get("mine")


def saved(folder: Path, *tail: torch.nn.Module, truncation: int | None = None, **options: Any) -> SentenceTransformer:
    """A random table and what follows it, written by the library and read back by it."""
    torch.manual_seed(0)
    backend = tokenizer()
    backend.enable_truncation(truncation) if truncation else backend.no_truncation()
    modules = [StaticEmbedding(backend, embedding_dim=32), *tail]
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder), create_model_card=False)
    return SentenceTransformer(str(folder), device="cpu")


def vectors(encoder: Encoder, texts: list[str], options: TextOptions = PLAIN) -> Vectors:
    return encoder.encode([item for item in encoder.tokenize(texts, options) if isinstance(item, Tokens)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, saved by the library, with a prompt."""
    folder = tmp_path_factory.mktemp("static")
    saved(folder, prompts={"query": "find: "})
    return folder


def test_the_vectors_are_the_librarys(folder: Path) -> None:
    peer, encoder = SentenceTransformer(str(folder), device="cpu"), load(of(folder), LoadOptions("cpu", "fp32"))
    assert (encoder.dimensions, encoder.packed, encoder.notes) == (32, True, ())
    np.testing.assert_allclose(vectors(encoder, TEXTS), peer.encode(TEXTS), atol=1e-6)
    prompted = vectors(encoder, TEXTS, TextOptions(prompt_name="query"))
    np.testing.assert_allclose(prompted, peer.encode(TEXTS, prompt_name="query"), atol=1e-6)
    assert not vectors(encoder, [""]).any()  # of no token


def test_modules_after_the_table_are_run(tmp_path: Path) -> None:
    peer = saved(tmp_path, Dense(32, 8), Normalize(), truncate_dim=6)
    encoder = load(of(tmp_path), LoadOptions("cpu", "fp32"))
    assert encoder.dimensions == 6
    assert cosine_rows(vectors(encoder, TEXTS), peer.encode(TEXTS)).min() >= 0.999999


def test_a_text_is_cut_where_the_tokeniser_or_the_entry_says(folder: Path, tmp_path: Path) -> None:
    peer, encoder = saved(tmp_path, truncation=16), load(of(tmp_path), LoadOptions("cpu", "fp32"))
    assert encoder.max_tokens == 16
    np.testing.assert_allclose(vectors(encoder, TEXTS), peer.encode(TEXTS), atol=1e-6)
    short = load(of(folder, max_tokens=8), LoadOptions("cpu", "fp32"))
    (cut,) = short.tokenize([TEXTS[3]], TextOptions())
    assert isinstance(cut, Tokens)
    assert (len(cut), cut.truncated) == (8, True)
    assert isinstance(short.tokenize([TEXTS[3]], TextOptions(truncate="error"))[0], TextTooLong)


def test_the_layout_of_model2vec_in_half_precision(tmp_path: Path) -> None:
    """Its repositories keep the table in the root, under a name of their own, and may fold vocabulary and weights."""
    saved(tmp_path / "own", Normalize())
    table = load_file(tmp_path / "own" / "model.safetensors")["embedding.weight"]
    rows, other = len(table), tmp_path / "model2vec"
    other.mkdir()
    mapping, factors = torch.arange(rows).flip(0).contiguous(), torch.rand(rows)
    parts = {"embeddings": table.half(), "mapping": mapping, "weights": factors}
    save_file(parts, other / "model.safetensors")
    tokenizer().save(str(other / "tokenizer.json"))
    (other / "config.json").write_text('{"model_type": "model2vec", "normalize": true}')
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": ".", "type": f"{kind}StaticEmbedding"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{kind}Normalize"},
    ]
    (other / "modules.json").write_text(json.dumps(modules))
    peer, encoder = SentenceTransformer(str(other), device="cpu"), load(of(other), LoadOptions("cpu", "fp32"))
    np.testing.assert_allclose(finish(vectors(encoder, TEXTS), True), peer.encode(TEXTS), atol=1e-4)
    assert footprint(of(other)).parameters == table.numel() + 2 * rows


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_passes_its_self_test_also_for_long_texts(folder: Path, dtype: Any) -> None:
    peer, encoder = SentenceTransformer(str(folder), device="cpu"), load(of(folder), LoadOptions("cpu", dtype))
    texts = ["def f(x): return x + 1\n" * 2000, *TEXTS[:2]]
    assert encoder.dtype == dtype
    assert cosine_rows(vectors(encoder, texts), peer.encode(texts)).min() >= 0.9999


def test_unfit_models_are_refused_with_the_next_step(folder: Path, tmp_path: Path) -> None:
    for fields, message in ({"causal": False}, "take it out"), ({"quantization": "int8"}, "linear layers"):
        with pytest.raises(ModelUnavailable, match=message):
            load(of(folder, **fields), LoadOptions("cpu", "fp32"))
    saved(tmp_path)
    file = tmp_path / "model.safetensors"
    table = load_file(file)["embedding.weight"]
    save_file({"embedding.weight": table[:100].contiguous()}, file)
    with pytest.raises(ModelUnavailable, match="100 rows"):
        load(of(tmp_path), LoadOptions("cpu", "fp32"))
    file.rename(file.with_name("other.safetensors"))  # the library would now read a pickle
    file.with_name("pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelUnavailable, match="pickle"):
        model_files.weight_files(of(tmp_path), tmp_path)
    with pytest.raises(CannotTrain, match="table of token vectors"):
        check_trainable(of(folder), folder)


def test_its_size_is_known(folder: Path) -> None:
    spec = of(folder, dtype="fp32")
    found, rows = footprint(spec), tokenizer().get_vocab_size()
    assert (found.parameters, found.sizes["fp32"]) == (32 * rows, 128 * rows)
    assert expected_bytes(spec, LoadOptions("cpu")) == ("cpu", 128 * rows)
    encoder = load(spec, LoadOptions("cpu"))
    assert encoder.weight_bytes == 128 * rows
    (placed,) = plan([candidate(spec, found, reducible=True)], 2 * 10**9).placements
    assert (placed.fate, placed.precision) == ("fits", "fp32")
