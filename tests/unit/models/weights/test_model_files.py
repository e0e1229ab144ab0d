"""Which files are a model's weights, and which are refused before anything reads them."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import save_constant
from own_entry import own
from safetensors.numpy import save_file

from models.catalogue import load_catalogue
from models.errors import CorruptWeights, ModelUnavailable
from models.weights import hub
from models.weights.model_files import check_weights, file_sha256, weight_files
from models.weights.onnx_data import data_names

PINNED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def layout(folder: Path, *modules: str, type_: str = "sentence_transformers.models.Transformer") -> Path:
    """A folder with a modules.json and one sub-folder a module."""
    for path in modules:
        (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": type_} for path in modules]))
    return folder


def weights(path: Path, value: float = 1.0) -> Path:
    """A safetensors file of a hundred equal numbers."""
    save_file({"a": np.full(100, value, np.float32)}, path)
    return path


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    minilm = load_catalogue().get("minilm")
    folder = shutil.copytree(hub.locate(minilm), tmp_path / "copy")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CorruptWeights) as caught:
        check_weights(minilm, folder)
    assert caught.value.expected == PINNED
    assert caught.value.found not in {PINNED, "nothing"}


def test_a_pinned_file_must_be_there(tmp_path: Path) -> None:
    weights(layout(tmp_path, "") / "model.safetensors")
    with pytest.raises(CorruptWeights) as caught:
        check_weights(own(folder=str(tmp_path), sha256={"config.json": PINNED}), tmp_path)
    assert caught.value.found == "nothing"


def test_several_weight_files_have_one_digest_that_changes_with_each(tmp_path: Path) -> None:
    layout(tmp_path, "", "1_Dense")
    spec = own(folder=str(tmp_path))
    seen = set()
    for first, second in [(1, 2), (1, 3), (2, 2)]:
        weights(tmp_path / "model.safetensors", first)
        weights(tmp_path / "1_Dense" / "model.safetensors", second)
        seen.add(check_weights(spec, tmp_path))
    assert len(seen) == 3


def test_layouts_that_are_refused(tmp_path: Path) -> None:
    spec = own(folder=str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"modules\.json"):
        check_weights(spec, tmp_path)
    with pytest.raises(ModelUnavailable, match="no safetensors"):
        check_weights(spec, layout(tmp_path, ""))
    with pytest.raises(ModelUnavailable, match="outside"):
        check_weights(spec, layout(tmp_path / "inner", "../elsewhere"))


@pytest.mark.parametrize("kept", [0, 7, 40, -1], ids=["nothing", "half a length", "half a header", "all but a byte"])
def test_safetensors_that_are_cut_short_are_refused_by_name(tmp_path: Path, kept: int) -> None:
    path = weights(layout(tmp_path, "") / "model.safetensors")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelUnavailable, match=r"model 'mine' .* model\.safetensors cannot be read.*complete copy"):
        check_weights(own(folder=str(tmp_path)), tmp_path)


def test_a_damaged_header_is_refused_by_name(tmp_path: Path) -> None:
    path = weights(layout(tmp_path, "") / "model.safetensors")
    whole = path.read_bytes()
    endless = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'
    of_headers = [len(header).to_bytes(8, "little") + header for header in (b"[" * 200_000, endless)]
    for broken in (
        b"\xff" * 8 + whole[8:],
        whole[:8] + b"[" + whole[9:],
        whole + b"\0",
        b"no safetensors",
        *of_headers,
    ):
        path.write_bytes(broken)
        with pytest.raises(ModelUnavailable, match=r"model\.safetensors cannot be read"):
            check_weights(own(folder=str(tmp_path)), tmp_path)


def test_a_folder_in_the_place_of_weights_is_refused_by_name(tmp_path: Path) -> None:
    (layout(tmp_path, "") / "model.safetensors").mkdir()
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors cannot be read, it cannot be opened"):
        check_weights(own(folder=str(tmp_path)), tmp_path)


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    weights(layout(tmp_path, "") / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelUnavailable, match=r"adapter.*merge it"):
        check_weights(own(folder=str(tmp_path)), tmp_path)


def test_every_shard_that_an_index_names_must_be_there(tmp_path: Path) -> None:
    layout(tmp_path, "")
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    weights(tmp_path / shards[0])
    with pytest.raises(ModelUnavailable, match=shards[1]):
        weight_files(own(folder=str(tmp_path)), tmp_path)
    with pytest.raises(ModelUnavailable, match="mlbus models pull mine"):
        weight_files(own(repository="me/mine"), tmp_path)
    weights(tmp_path / shards[1])
    assert weight_files(own(folder=str(tmp_path)), tmp_path) == shards
    for odd in ('{"weight_map": []}', '{"weight_map": {"a": 5}}', "[" * 200_000):
        (tmp_path / "model.safetensors.index.json").write_text(odd)
        with pytest.raises(ModelUnavailable, match="index"):
            weight_files(own(folder=str(tmp_path)), tmp_path)


def test_the_weights_of_an_onnx_model_are_its_graph_and_the_data_that_it_names(tmp_path: Path) -> None:
    spec = own(
        folder=str(tmp_path),
        served_by="onnx",
        onnx_files={"fp32": "onnx/model.onnx", "fp16": "onnx/half.onnx"},
        sha256={"onnx/half.onnx": PINNED},
    )
    assert spec.graph() == "fp32"
    with pytest.raises(ModelUnavailable, match=r"no onnx/model\.onnx"):
        weight_files(spec, tmp_path)
    save_constant(tmp_path / "onnx/model.onnx", "some.data")
    assert weight_files(spec, tmp_path) == ["onnx/model.onnx", "onnx/some.data"]
    digest = check_weights(spec, tmp_path)
    save_constant(tmp_path / "onnx/half.onnx", None)
    assert weight_files(spec, tmp_path, "fp16") == ["onnx/half.onnx"]
    with pytest.raises(CorruptWeights, match="half"):
        check_weights(spec, tmp_path, dtype="fp16")
    assert check_weights(spec, tmp_path) == digest
    (tmp_path / "onnx/some.data").unlink()
    with pytest.raises(ModelUnavailable, match=r"onnx/some\.data, which onnx/model\.onnx needs"):
        check_weights(spec, tmp_path)


def test_pins_hold_for_the_graph_that_is_chosen_and_not_for_another(tmp_path: Path) -> None:
    save_constant(tmp_path / "m.onnx_fp16", "m.onnx_fp16_data")
    pins = {"m.onnx": PINNED, "m.onnx_data": PINNED, "m.onnx_fp16": PINNED}
    spec = own(
        folder=str(tmp_path),
        served_by="onnx",
        dtype="fp16",
        onnx_files={"fp32": "m.onnx", "fp16": "m.onnx_fp16"},
        sha256=pins,
    )
    with pytest.raises(CorruptWeights, match=r"m\.onnx_fp16"):
        check_weights(spec, tmp_path)
    right = file_sha256(tmp_path / "m.onnx_fp16")
    assert check_weights(spec.model_copy(update={"sha256": {**pins, "m.onnx_fp16": right}}), tmp_path)


def named(path: Path, location: str, *, value_first: bool = False) -> None:
    """A graph whose one tensor lies in the file `location`."""
    tensor = onnx.TensorProto(name="weight", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="offset", value="0")
    tensor.external_data.add(key="location", value=location)
    content = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    if value_first:
        key, value = b"\x0a\x08location", b"\x12%c%b" % (len(location), location.encode())
        assert key + value in content
        content = content.replace(key + value, value + key)
    path.write_bytes(content)


def test_data_is_found_however_its_location_is_written(tmp_path: Path) -> None:
    spec = own(folder=str(tmp_path), served_by="onnx", onnx_files={"fp32": "m.onnx"})
    long = "d" * 200
    for name in ("data", long):
        (tmp_path / name).write_bytes(b"1234")
    for location, value_first, found in [
        ("data", True, "data"),
        (long, False, long),
        ("./" * 70 + "data", False, "data"),
    ]:
        named(tmp_path / "m.onnx", location, value_first=value_first)
        assert weight_files(spec, tmp_path) == sorted(["m.onnx", found])
    for location, value_first in [("../data", True), ("./" * 70 + "../data", False), ("/etc/hostname", False)]:
        named(tmp_path / "m.onnx", location, value_first=value_first)
        with pytest.raises(ModelUnavailable, match="points outside its folder"):
            weight_files(spec, tmp_path)


def external(name: str) -> onnx.TensorProto:
    """A tensor whose data is in the file of its name."""
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value=name)
    return tensor


def test_data_is_found_wherever_a_tensor_can_be(tmp_path: Path) -> None:
    helper = onnx.helper
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=external("in_branch"))], "b", [], [])
    branch.initializer.append(external("of_branch"))
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    node.attribute.add(name="several", type=onnx.AttributeProto.TENSORS, tensors=[external("in_list")])
    sparse = onnx.SparseTensorProto(values=external("values"), indices=external("indices"))
    body = helper.make_graph([node], "g", [], [], [external("initializer")])
    body.sparse_initializer.append(sparse)
    function = helper.make_function("own", "F", [], ["o"], [], [])
    function.node.add(op_type="Constant").attribute.add(name="value", t=external("in_function"))
    model = helper.make_model(body, functions=[function])
    model.training_info.add(algorithm=helper.make_graph([], "t", [], [], [external("in_training")]))
    onnx.save_model(model, tmp_path / "m.onnx")
    places = {"in_branch", "of_branch", "in_list", "values", "indices", "initializer", "in_function", "in_training"}
    assert data_names(tmp_path / "m.onnx") == places


def test_a_graph_that_cannot_be_walked_is_refused_by_name(tmp_path: Path) -> None:
    spec = own(folder=str(tmp_path), served_by="onnx", onnx_files={"fp32": "m.onnx"})
    named(tmp_path / "m.onnx", "data")
    whole = (tmp_path / "m.onnx").read_bytes()
    for broken in (whole[:-1], whole[:5], b"hello world", whole + b"\xff" * 20, whole + b"\x0b\x0c"):
        (tmp_path / "m.onnx").write_bytes(broken)
        with pytest.raises(ModelUnavailable, match=r"m\.onnx cannot be read.*complete copy"):
            weight_files(spec, tmp_path)


def test_digests_may_be_cached(tmp_path: Path) -> None:
    minilm = load_catalogue().get("minilm")
    asked: list[Path] = []

    def remembered(path: Path) -> str:
        asked.append(path)
        return PINNED

    folder = hub.locate(minilm)
    assert check_weights(minilm, folder, remembered) == PINNED
    assert asked == [folder / "model.safetensors"]
