"""A model written out is the same model, for us and for sentence-transformers, and keeps the files of its base."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from bench.random_models import write_qodo
from models.catalogue import ModelSpec, load_catalogue
from models.encoders.base import TextOptions, Tokens
from models.encoders.modules import read_sentence_transformer
from models.loading.loader import LoadOptions, load
from models.training.fit.export import export
from models.weights.hub import locate
from models.weights.model_files import check_weights

TEXTS = ["def hello(): pass", "x", "return the sum of the squares", "open a file and read it"]


def changed(model: SentenceTransformer) -> SentenceTransformer:
    """The same model with other weights, as training leaves it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.05 * torch.randn_like(weight))
    return model


def exported(entry: ModelSpec, base: Path, folder: Path) -> SentenceTransformer:
    """A changed model of `base`, written to `folder`, which holds its digest to be right."""
    folder.mkdir()
    model = changed(read_sentence_transformer(entry, base))
    digest = export(entry, model, base, folder)
    assert digest == check_weights(entry.model_copy(update={"sha256": {}}), folder)
    return model


def require_the_same(entry: ModelSpec, model: SentenceTransformer, folder: Path) -> None:
    """Read back by the library its vectors are equal in every bit; served they are within 1e-5 (packed batches)."""
    expected = model.encode(TEXTS)
    assert np.array_equal(read_sentence_transformer(entry, folder).encode(TEXTS), expected)
    encoder = load(entry, LoadOptions("cpu", "fp32", folder=folder))
    tokens = [each for each in encoder.tokenize(TEXTS, TextOptions()) if isinstance(each, Tokens)]
    found = encoder.encode(tokens)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 1 - 1e-5


def names(folder: Path) -> dict[str, list[int]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    return found


def of_folder(folder: Path, **fields: object) -> ModelSpec:
    return load_catalogue({"mine": {"kind": "embedding", "folder": str(folder), **fields}}).get("mine")


def test_minilm_keeps_every_file_but_its_weights(tmp_path: Path) -> None:
    entry = load_catalogue().get("minilm")
    base, folder = locate(entry), tmp_path / "new"
    model = exported(entry, base, folder)
    require_the_same(entry, model, folder)
    assert names(folder) == names(base)
    for file in (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"):
        assert file.read_bytes() == (base / file.relative_to(folder)).read_bytes()
    assert {"tokenizer.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= {
        path.relative_to(folder).as_posix() for path in folder.rglob("*")
    }
    plain = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    assert np.array_equal(plain.encode(TEXTS), model.encode(TEXTS))


def test_configurations_of_version_six_are_written_in_the_legacy_form(tmp_path: Path) -> None:
    minilm = load_catalogue().get("minilm")
    source = read_sentence_transformer(minilm, locate(minilm))
    transformer = source[0]
    assert isinstance(transformer, Transformer)
    modules = [transformer, Pooling(384, ("cls", "mean")), Dense(768, 16), Normalize()]
    base, folder = tmp_path / "base", tmp_path / "new"
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(base), create_model_card=False)
    entry = of_folder(base)
    model = exported(entry, base, folder)
    require_the_same(entry, model, folder)
    types = [module["type"] for module in json.loads((folder / "modules.json").read_bytes())]
    assert types == [
        f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Dense", "Normalize")
    ]
    pooling = json.loads((folder / "1_Pooling/config.json").read_bytes())
    assert {name for name, value in pooling.items() if value is True and name != "include_prompt"} == {
        "pooling_mode_cls_token",
        "pooling_mode_mean_tokens",
    }
    assert pooling["word_embedding_dimension"] == 384
    assert json.loads((folder / "sentence_bert_config.json").read_bytes())["max_seq_length"] == 256
    assert set(json.loads((folder / "2_Dense/config.json").read_bytes())) == {
        "in_features",
        "out_features",
        "bias",
        "activation_function",
    }


@pytest.mark.parametrize("prefix", ["", "model."])
def test_shards_and_prefixes_stay(tmp_path: Path, prefix: str) -> None:
    base, folder = write_qodo(tmp_path / "base", prefix=prefix, shards=3), tmp_path / "new"
    entry = of_folder(base, causal=False, append_eos=True)
    model = exported(entry, base, folder)
    require_the_same(entry, model, folder)
    assert names(folder) == names(base)
    assert len(list(folder.glob("*.safetensors"))) == 3
    index = "model.safetensors.index.json"
    assert json.loads((folder / index).read_bytes()) == json.loads((base / index).read_bytes())


def test_half_precision_becomes_float32_in_weights_and_configuration(tmp_path: Path) -> None:
    base, folder = write_qodo(tmp_path / "base", shards=1), tmp_path / "new"
    (file,) = base.glob("*.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    entry = of_folder(base)
    model = exported(entry, base, folder)
    require_the_same(entry, model, folder)
    assert {tensor.dtype for tensor in load_file(folder / file.name).values()} == {torch.float32}
    assert json.loads((folder / "config.json").read_bytes())["torch_dtype"] == "float32"
    total = json.loads((folder / "model.safetensors.index.json").read_bytes())["metadata"]["total_size"]
    assert total == sum(weight.nbytes for weight in model.parameters())


def test_files_of_an_earlier_training_and_pickles_are_not_copied(tmp_path: Path) -> None:
    base, folder = write_qodo(tmp_path / "base"), tmp_path / "new"
    (base / "training_config.json").write_text("{}")
    (base / "report").mkdir()
    (base / "report" / "report.json").write_text("{}")
    (base / "training_args.bin").write_bytes(b"a pickle")
    (base / "onnx").mkdir()
    (base / "onnx" / "model.onnx").write_bytes(b"a graph of the old weights")
    (base / "LICENSE").write_text("as it was")
    exported(of_folder(base), base, folder)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert not found & {"training_config.json", "report", "training_args.bin", "onnx"}
    assert (folder / "LICENSE").read_text() == "as it was"
