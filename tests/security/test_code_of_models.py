"""A model's folder never has code of its own run: neither its modules nor its pickles."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from bench.random_generators import write_llama
from models.catalogue import Kind, ModelSpec, load_catalogue
from models.errors import ModelUnavailable
from models.loading.loader import LoadOptions, load, load_generator

FP32 = LoadOptions("cpu", "fp32")


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that is there once somebody's code has run."""
    return tmp_path / "ran"


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, ran: Path) -> None:
        self._ran = ran

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._ran,)


def spec_of(folder: Path, kind: Kind) -> ModelSpec:
    return load_catalogue({"mine": {"kind": kind, "folder": str(folder)}}).get("mine")


def with_code(folder: Path, ran: Path) -> Path:
    """A module that any import of it gives away."""
    folder.mkdir(exist_ok=True)
    (folder / "theirs.py").write_text(f"open({str(ran)!r}, 'w')\n")
    return folder


def test_code_beside_a_model_that_generates(tmp_path: Path, ran: Path) -> None:
    folder = with_code(write_llama(tmp_path / "own"), ran)
    config = json.loads((folder / "config.json").read_text())
    classes = {"AutoModelForCausalLM": "theirs.Model", "AutoConfig": "theirs.Config"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": classes}))
    load_generator(spec_of(folder, "generation"), FP32)
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": classes, "model_type": "theirs"}))
    with pytest.raises(ModelUnavailable, match="custom code"):
        load_generator(spec_of(folder, "generation"), FP32)
    assert not ran.exists()


def test_modules_of_an_embedding_model(tmp_path: Path, ran: Path) -> None:
    folder = with_code(tmp_path / "own", ran)
    (folder / "modules.json").write_text(json.dumps([{"path": "", "type": "theirs.Module"}]))
    with pytest.raises(ModelUnavailable, match="never run"):
        load(spec_of(folder, "embedding"), FP32)
    assert not ran.exists()


@pytest.mark.parametrize("pickled", ["", "1_Dense"])
def test_weights_that_are_pickled(tmp_path: Path, ran: Path, pickled: str) -> None:
    folder = tmp_path / "own"
    (folder / "1_Dense").mkdir(parents=True)
    kinds = {"": "sentence_transformers.models.Transformer", "1_Dense": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in kinds.items()]))
    for path in kinds.keys() - {pickled}:
        (folder / path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (folder / pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(ran)))
    with pytest.raises(ModelUnavailable, match="pickle"):
        load(spec_of(folder, "embedding"), FP32)
    assert not ran.exists()
