"""Where weights lie, and which ones are refused before anything reads them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors as hub_errors

from models import hub
from models.catalogue import ModelSpec, load_catalogue
from models.errors import CorruptWeights, ModelUnavailable

PINNED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def own(**fields: object) -> ModelSpec:
    return load_catalogue({"mine": {"kind": "embedding", **fields}}).get("mine")


def layout(folder: Path, *modules: str, type_: str = "sentence_transformers.models.Transformer") -> Path:
    """A folder with a modules.json and one sub-folder a module."""
    for path in modules:
        (folder / path).mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": type_} for path in modules]))
    return folder


def test_the_package_is_found_without_importing_it() -> None:
    minilm = load_catalogue().get("minilm")
    folder = hub.locate(minilm)
    assert (folder / "model.safetensors").is_file()
    assert hub.is_present(minilm)
    assert hub.check_weights(minilm, folder) == PINNED


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    minilm = load_catalogue().get("minilm")
    folder = shutil.copytree(hub.locate(minilm), tmp_path / "copy")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CorruptWeights) as caught:
        hub.check_weights(minilm, folder)
    assert caught.value.expected == PINNED
    assert caught.value.found not in {PINNED, "nothing"}


def test_a_pinned_file_must_be_there(tmp_path: Path) -> None:
    (layout(tmp_path, "") / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(CorruptWeights) as caught:
        hub.check_weights(own(folder=str(tmp_path), sha256={"config.json": PINNED}), tmp_path)
    assert caught.value.found == "nothing"


@pytest.mark.parametrize("pickled", ["", "1_Dense"])
def test_a_pickle_is_never_read(tmp_path: Path, pickled: str) -> None:
    layout(tmp_path, "", "1_Dense")
    for path in {"", "1_Dense"} - {pickled}:
        (tmp_path / path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ModelUnavailable, match="pickle"):
        hub.check_weights(own(folder=str(tmp_path)), tmp_path)


def test_several_weight_files_have_one_digest_that_changes_with_each(tmp_path: Path) -> None:
    layout(tmp_path, "", "1_Dense")
    spec = own(folder=str(tmp_path))
    seen = set()
    for first, second in [(b"a", b"b"), (b"a", b"c"), (b"b", b"b")]:
        (tmp_path / "model.safetensors").write_bytes(first)
        (tmp_path / "1_Dense" / "model.safetensors").write_bytes(second)
        seen.add(hub.check_weights(spec, tmp_path))
    assert len(seen) == 3


def test_layouts_that_are_refused(tmp_path: Path) -> None:
    spec = own(folder=str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"modules\.json"):
        hub.check_weights(spec, tmp_path)
    with pytest.raises(ModelUnavailable, match="no safetensors"):
        hub.check_weights(spec, layout(tmp_path, ""))
    with pytest.raises(ModelUnavailable, match="outside"):
        hub.check_weights(spec, layout(tmp_path / "inner", "../elsewhere"))
    with pytest.raises(ModelUnavailable, match="never run"):
        hub.check_weights(spec, layout(tmp_path, "", type_="modeling_mine.Encoder"))


def test_missing_folder_and_package_say_what_to_do(tmp_path: Path) -> None:
    missing = own(folder=str(tmp_path / "nowhere"), repository="me/mine")
    assert not hub.is_present(missing)
    with pytest.raises(ModelUnavailable, match="correct `folder`"):
        hub.locate(missing)
    with pytest.raises(ModelUnavailable, match="install no_such_package"):
        hub.locate(own(package="no_such_package"))
    with pytest.raises(ModelUnavailable, match="no source"):
        hub.locate(load_catalogue().get("tiny_coder"))


def test_a_repository_that_is_not_cached_is_not_present(tmp_path: Path) -> None:
    assert not hub.is_present(own(repository="nobody/no-such-model"))


RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("failure", "next_step"),
    [
        (hub_errors.GatedRepoError("gated", response=RESPONSE), "accept its licence"),
        (hub_errors.RepositoryNotFoundError("none", response=RESPONSE), "no repository me/mine"),
        (hub_errors.RevisionNotFoundError("none", response=RESPONSE), "no revision v9"),
        (hub_errors.LocalEntryNotFoundError("offline"), "not in the cache"),
        (ConnectionResetError(), "check the connection"),
    ],
)
def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, failure: Exception, next_step: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelUnavailable, match=next_step):
        hub.locate(own(repository="me/mine", revision="v9"))


def test_a_download_asks_for_safetensors_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def download(repository: str, **options: object) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub.locate(own(repository="me/mine", revision="v9")) == tmp_path
    assert (asked["repository"], asked["revision"]) == ("me/mine", "v9")
    assert "*.safetensors" in str(asked["allow_patterns"])
    assert "*.bin" in str(asked["ignore_patterns"])
