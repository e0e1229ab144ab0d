"""Files of an untrusted model: none blocks a worker, takes its memory or runs code in it."""

import json
import os
import shutil
from pathlib import Path

import onnx
import pytest
from generation_models import llama
from onnx import TensorProto, helper
from onnx_models import save
from own_entry import own

from models.catalogue import ModelSpec, load_catalogue
from models.errors import ModelUnavailable
from models.loading.load_cache import LoadCache
from models.loading.loader import LoadOptions
from models.sandbox import probe
from models.weights import hub
from models.weights.model_files import check_weights, module_folders
from models.weights.versions import RECORD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model that generates text."""
    return Path(shutil.copytree(llama(), tmp_path / "model"))


def needed(spec: ModelSpec, tmp_path: Path, folder: Path | None = None) -> probe.Probe | None:
    return probe.needed(spec, LoadOptions("cpu", folder=folder, cache=LoadCache(tmp_path / "cache")))


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "added_tokens2.json")


def link_out(folder: Path) -> None:
    (folder / "added_tokens.json").symlink_to("/etc/hosts")


def device(folder: Path) -> None:
    (folder / "vocab.txt").symlink_to("/dev/zero")


def long_tokenizer(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 166_000_000)


def long_config(folder: Path) -> None:
    os.truncate(folder / "config.json", 20_000_000)


def long_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write((89_000_000).to_bytes(8, "little"))
        file.truncate(90_000_000)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (pipe, "not a regular file"),
        (link_out, "a link out of its folder"),
        (device, "a link out of its folder"),
        (long_tokenizer, "has 166000000 bytes"),
        (long_config, "has 20000000 bytes"),
        (long_header, "its header has 89000000 bytes"),
    ],
)
def test_what_is_no_regular_file_or_too_long_is_not_opened(folder: Path, tmp_path: Path, spoil, reason: str) -> None:
    spoil(folder)
    with pytest.raises(ModelUnavailable, match=reason):
        needed(own("generation", folder=folder), tmp_path)


@pytest.mark.parametrize("name", ["modules.json", "model.safetensors"])
def test_a_pipe_does_not_block_the_search_for_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    spec = own(folder=tmp_path)
    assert hub.is_present(spec) == (name != "modules.json")
    with pytest.raises(ModelUnavailable):
        check_weights(spec, tmp_path)


@pytest.mark.parametrize(
    "module",
    ["base.sampler.torch", "base.model.pickle", "base.modules.Router", "models.WordEmbeddings", "models.x.y.Dense"],
)
def test_a_list_of_modules_reaches_no_other_code_of_the_library(tmp_path: Path, module: str) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"path": "", "type": f"sentence_transformers.{module}"}]))
    with pytest.raises(ModelUnavailable, match="which is not loaded here"):
        module_folders(own(folder=tmp_path), tmp_path)


@pytest.mark.slow
def test_more_layers_than_weights_are_counted_and_not_made(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3_000_000}))
    required = needed(own("generation", folder=folder), tmp_path)
    assert required is not None
    with pytest.raises(ModelUnavailable, match="tells of 3000000 layers"):
        required.run(60)


def test_an_endless_graph_is_given_up(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    number = helper.make_tensor("m", TensorProto.INT64, [], [2**62])
    truth = helper.make_tensor("c", TensorProto.BOOL, [], [1])
    scalar = [helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in ("at", "before", "after")]
    flags = [helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in ("go", "on")]
    steps = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["before", "at"], ["after"])]
    body = helper.make_graph(steps, "body", [scalar[0], flags[0], scalar[1]], [flags[1], scalar[2]])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])
    result = helper.make_tensor_value_info("text_embeds", TensorProto.INT64, [])
    zero = helper.make_tensor("z", TensorProto.INT64, [], [0])
    loop = helper.make_node("Loop", ["m", "c", "z"], ["text_embeds"], body=body)
    graph = helper.make_graph([loop], "endless", [ids], [result], [number, truth, zero])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(made, folder / "onnx/model.onnx")
    required = needed(own(folder=folder, served_by="onnx"), tmp_path)
    assert required is not None
    with pytest.raises(ModelUnavailable, match="took longer than 4 s"):
        required.run(4)


@pytest.mark.slow
def test_a_probed_model_is_not_probed_again_until_it_changes(folder: Path, tmp_path: Path) -> None:
    spec = own("generation", folder=folder)
    required = needed(spec, tmp_path)
    assert required is not None
    required.run(100)
    LoadCache(tmp_path / "cache").keep_probed(required.key)
    assert needed(spec, tmp_path) is None
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert needed(spec, tmp_path) is not None


def test_our_own_versions_and_models_of_packages_are_not_probed(folder: Path, tmp_path: Path) -> None:
    spec = own("generation", folder=folder)
    assert needed(spec, tmp_path, folder) is not None
    record = {"model": "mine", "job": "j", "parent": "base", "created_at": "2026-01-01T00:00:00Z"}
    record |= {"options": {}, "data": {}}
    digest = check_weights(spec, folder)
    (folder / RECORD).write_text(json.dumps(record | {"metrics": {}, "weights_sha256": digest}))
    assert needed(spec, tmp_path, folder) is None
    (folder / RECORD).write_text(json.dumps(record | {"metrics": {}, "weights_sha256": "0" * 64}))
    assert needed(spec, tmp_path, folder) is not None
    assert needed(load_catalogue().get("minilm"), tmp_path) is None
