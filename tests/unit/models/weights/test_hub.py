"""The folder of an entry: from a package, from a folder, and from a Hub that fails in many ways."""

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, hub_server
from huggingface_hub import HfApi, RepoFile, close_session, constants, file_download
from huggingface_hub.utils import WeakFileLock
from onnx_models import save_constant
from own_entry import own
from safetensors.numpy import save_file

from models.catalogue import ModelSpec, load_catalogue
from models.errors import ModelError, ModelUnavailable
from models.loading.loader import load_generator
from models.loading.support import Support, support
from models.weights import hub, hub_cache, model_files

REPOSITORY = "me/mine"


MINE = own(repository=REPOSITORY)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that has the repository me/mine, and an empty cache; huggingface_hub read its own at import."""
    with hub_server() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        # Its pauses between two tries; the module's own sleep only.
        monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        server.add(REPOSITORY, source(tmp_path / "source"))
        yield server
        close_session()


def source(folder: Path, value: float = 1.0) -> Path:
    """What an author would upload: a model, and files that must not be fetched."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "onnx").mkdir(exist_ok=True)
    types = {"": "Transformer", "1_Pooling": "Pooling"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in types.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text("{}")
    save_file({"a": np.full(30_000, value, np.float32)}, folder / "model.safetensors")
    for name in ("pytorch_model.bin", "modeling_mine.py", "README.md"):
        (folder / name).write_bytes(name.encode())
    save_constant(folder / "onnx/model.onnx", "model.onnx_data")
    return folder


def cached() -> list[str]:
    """Everything in the cache below `snapshots/<commit>`."""
    found = hub_cache.storage(REPOSITORY).glob("snapshots/*/**/*")
    return sorted("/".join(path.parts[path.parts.index("snapshots") + 2 :]) for path in found if path.is_file())


def partial() -> list[Path]:
    return list(hub_cache.storage(REPOSITORY).glob("blobs/*.incomplete"))


def test_the_package_is_found_without_importing_it() -> None:
    minilm = load_catalogue().get("minilm")
    assert (hub.locate(minilm) / "model.safetensors").is_file()
    assert hub.is_present(minilm)
    assert not hub.from_hub(minilm)


def test_a_package_may_itself_be_the_folder() -> None:
    folder = hub.locate(load_catalogue().get("tiny_coder"))
    assert (folder / "model.safetensors").is_file()
    assert hub.is_present(load_catalogue().get("tiny_coder"))


def test_missing_folder_and_package_say_what_to_do(tmp_path: Path) -> None:
    missing = own(folder=str(tmp_path / "nowhere"), repository="me/mine")
    assert not hub.is_present(missing)
    with pytest.raises(ModelUnavailable, match="correct `folder`"):
        hub.locate(missing)
    with pytest.raises(ModelUnavailable, match="install no_such_package"):
        hub.locate(own(package="no_such_package"))
    with pytest.raises(ModelUnavailable, match="no source"):
        hub.locate(ModelSpec(id="bare", kind="embedding"))
    with pytest.raises(ModelUnavailable, match="install no_such_package"):
        hub.locate(own(package="no_such_package.inside"))


def test_a_download_has_what_serving_needs_and_no_pickle_and_no_code(remote: Hub, tmp_path: Path) -> None:
    assert not hub.is_present(MINE)
    with pytest.raises(ModelUnavailable, match="mlbus models pull mine"):
        hub.locate(MINE, download=False)
    remote.licence = "apache-2.0"
    steps: list[str] = []
    counts: list[tuple[int, int]] = []
    pulled = hub.pull(MINE, on_step=steps.append, on_bytes=lambda *count: counts.append(count))
    assert cached() == ["1_Pooling/config.json", "model.safetensors", "modules.json"]
    assert (pulled.licence, pulled.fetched_bytes > 120_000) == ("apache-2.0", True)
    assert steps[1] == "fetching 3 files"
    assert counts == sorted(counts)
    assert counts[-1] == (pulled.fetched_bytes, pulled.fetched_bytes)
    assert hub.is_present(MINE)
    asked = len(remote.requests)
    assert hub.locate(MINE) == pulled.folder
    assert hub.locate(MINE, download=False) == pulled.folder
    assert len(remote.requests) == asked
    assert hub.pull(MINE).fetched_bytes == 0


def test_only_files_that_transformers_reads_are_fetched_of_a_generation_model(remote: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "writes"
    for name in ("model-00001-of-00001", "consolidated", "fp16/model", "original/consolidated"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"a": np.ones(9, np.float32)}, folder / f"{name}.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "original" / "params.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    remote.add("me/writes", folder)
    spec = own("generation", repository="me/writes")
    found = hub.pull(spec).folder
    assert {path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file()} == {
        "chat_template.jinja",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
    }
    assert model_files.weight_files(spec, found) == ["model-00001-of-00001.safetensors"]


def test_shards_of_any_name_are_fetched_if_an_index_names_them(remote: Hub, tmp_path: Path) -> None:
    shard = "model.safetensors-00001-of-00001.safetensors"
    for name in (shard, "other.safetensors"):
        save_file({"a": np.ones(9, np.float32)}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    remote.add("me/odd", tmp_path)
    spec = own("generation", repository="me/odd")
    found = hub.pull(spec).folder
    assert [path.name for path in found.glob("*.safetensors")] == model_files.weight_files(spec, found) == [shard]
    assert hub.is_present(spec)


@pytest.mark.parametrize(("kind", "served"), [("mistral", True), ("mamba", False)])
def test_whether_a_model_can_be_served_is_known_before_its_weights_are_fetched(
    remote: Hub, tmp_path: Path, kind: str, served: bool
) -> None:
    folder = tmp_path / kind
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    remote.add("me/coder", folder)

    found = support(own("generation", repository="me/coder"))

    assert (found.served, remote.asked("model.safetensors")) == (served, [])
    assert not (tmp_path / "cache").exists()
    if not served:  # and the loader says the same
        with pytest.raises(ModelUnavailable) as refused:
            load_generator(own("generation", folder=folder))
        assert refused.value.reason == found.reason


def test_without_a_configuration_it_is_not_known_whether_a_model_can_be_served(remote: Hub, tmp_path: Path) -> None:
    for fields in ({"repository": "me/none"}, {"folder": str(tmp_path / "none")}):
        found = support(own("generation", **fields))
        assert (found.served, bool(found.reason)) == (None, True)


def test_an_embedding_model_that_needs_code_is_recognised_before_it_is_fetched(remote: Hub, tmp_path: Path) -> None:
    assert support(MINE) == Support(True)
    modules = '[{"path": "", "type": "modeling_mine.Own"}]'
    (tmp_path / "source" / "modules.json").write_text(modules)
    remote.add(REPOSITORY, tmp_path / "source")
    found = support(MINE)
    assert (found.served, remote.asked("model.safetensors")) == (False, [])
    assert "code of its own" in str(found.reason)


def test_an_entry_chooses_files_but_never_pickles_or_code(remote: Hub) -> None:
    hub.pull(own(repository=REPOSITORY, allow_patterns=["*"]))
    assert "README.md" in cached()
    assert not {"pytorch_model.bin", "modeling_mine.py"} & set(cached())


def test_the_graph_of_an_onnx_model_and_its_data_are_fetched(remote: Hub, tmp_path: Path) -> None:
    save_constant(tmp_path / "source" / "onnx" / "model_fp16.onnx", None)
    remote.add(REPOSITORY, tmp_path / "source")
    graphs = {"fp32": "onnx/model.onnx", "fp16": "onnx/model_fp16.onnx"}
    spec = own(repository=REPOSITORY, served_by="onnx", onnx_files=graphs)
    hub.pull(spec)
    texts = ["1_Pooling/config.json", "modules.json"]
    assert cached() == sorted([*texts, "onnx/model.onnx", "onnx/model.onnx_data"])
    assert hub.is_present(spec)
    assert not hub.is_present(spec, "fp16")
    hub.locate(spec, dtype="fp16")
    assert hub.is_present(spec, "fp16")
    assert "onnx/model_fp16.onnx" in cached()
    hub_cache.delete_cached(hub.locate(spec) / "onnx/model.onnx")
    assert hub.is_present(spec)
    assert not hub.is_present(spec, "fp32")


@pytest.mark.parametrize("data", ["weights.bin", "weights.pb", "Constant_0_attr", "odd [1] name"])
def test_data_of_any_name_that_a_graph_gives_is_fetched_and_verified(remote: Hub, tmp_path: Path, data: str) -> None:
    folder = tmp_path / "source"
    save_constant(folder / "onnx/model.onnx", data)
    (folder / "onnx/model.onnx_data").unlink()
    (folder / "onnx/other.bin").write_bytes(b"of no graph")
    remote.add(REPOSITORY, folder)
    spec = own(repository=REPOSITORY, served_by="onnx")
    remote.wrong[f"onnx/{data}"] = b"x" * 8000
    with pytest.raises(ModelError, match="of model 'mine'"):
        hub.pull(spec)
    assert not hub.is_present(spec)
    remote.wrong.clear()
    pulled = hub.pull(spec)
    assert pulled.fetched_bytes == 8000
    assert model_files.weight_files(spec, pulled.folder) == sorted(["onnx/model.onnx", f"onnx/{data}"])
    assert hub.locate(spec, download=False) == pulled.folder
    assert "onnx/other.bin" not in cached()
    assert hub.pull(spec).fetched_bytes == 0


@pytest.mark.parametrize("data", ["weights.pt", "weights.py", "pytorch_model.bin"])
def test_code_and_pickles_are_not_fetched_as_the_data_of_a_graph(remote: Hub, tmp_path: Path, data: str) -> None:
    save_constant(tmp_path / "source/onnx/model.onnx", data)
    remote.add(REPOSITORY, tmp_path / "source")
    with pytest.raises(ModelUnavailable, match=rf"does not suffice: onnx/{data}.*complete copy"):
        hub.pull(own(repository=REPOSITORY, served_by="onnx"))
    assert not remote.asked(data)


def test_a_repository_without_the_graph_of_the_entry_is_refused_before_a_byte_is_fetched(remote: Hub) -> None:
    with pytest.raises(ModelUnavailable, match=r"has no model\.onnx that its entry allows; correct `onnx_files`"):
        hub.pull(own(repository=REPOSITORY, served_by="onnx", onnx_files={"fp32": "model.onnx"}))
    assert not cached()


@pytest.mark.parametrize(
    ("name", "commit"),
    [
        ("../../../../victim.safetensors", None),
        ("{victim}", None),
        ("a\\..\\victim.safetensors", None),
        ("model.safetensors", "../../.."),
    ],
    ids=["up", "absolute", "backslashes", "commit"],
)
def test_a_listing_that_leads_out_of_the_cache_is_refused_before_anything_is_touched(
    remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, commit: str | None
) -> None:
    hub.pull(MINE)
    victim = tmp_path / "victim.safetensors"
    victim.write_bytes(b"precious")
    remote.add(REPOSITORY, source(tmp_path / "newer", 2.0))
    info = HfApi().model_info(REPOSITORY)
    listed = next(one for one in info.siblings or () if one.rfilename == "model.safetensors")
    listed.rfilename, info.sha = name.format(victim=victim), commit or info.sha
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: info)
    tree = [RepoFile(path=one.rfilename, size=8, oid="0" * 40) for one in info.siblings or ()]
    monkeypatch.setattr(HfApi, "list_repo_tree", lambda *_, **__: iter(tree))
    with pytest.raises(ModelUnavailable, match=r"which cannot be|ValueError: Invalid filename"):
        hub.pull(MINE)
    assert victim.read_bytes() == b"precious"
    assert "model.safetensors" in cached()


def test_a_broken_transfer_goes_on_where_it_stopped(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    remote.cut["model.safetensors"] = 50_000
    folder = hub.pull(MINE).folder
    assert remote.asked("model.safetensors") == [None, "bytes=50000-"]
    assert model_files.check_weights(MINE, folder) == model_files.file_sha256(folder / "model.safetensors")


def test_complete_files_are_not_fetched_again(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        failing = _fails_on("model.safetensors", ConnectionResetError("reset by peer"), transfers=3)
        patched.setattr(file_download, "http_get", failing)
        with pytest.raises(ModelUnavailable, match=r"me/mine could not be fetched from .*pull again"):
            hub.pull(MINE)
    assert cached() == ["1_Pooling/config.json", "modules.json"]
    assert not partial()
    assert not hub.is_present(MINE)
    hub.locate(MINE)
    assert len(remote.asked("modules.json")) == 1


def _fails_on(name: str, error: Exception, transfers: int = 1) -> Any:
    """A transfer that fails for one file after some bytes of it, after a number of transfers has begun."""
    get, all_begun = file_download.http_get, Barrier(transfers)

    def transfer(url: str, temp_file: Any, **options: Any) -> None:
        all_begun.wait(60)
        if url.endswith(name):
            temp_file.write(b"some")
            raise error
        get(url, temp_file, **options)

    return transfer


def test_wrong_bytes_are_deleted_and_fetched_anew(remote: Hub, tmp_path: Path) -> None:
    right = (tmp_path / "source" / "model.safetensors").read_bytes()
    remote.wrong["model.safetensors"] = right[:-1] + b"!"
    with pytest.raises(ModelError, match=r"model\.safetensors of model 'mine'.*mlbus models pull mine"):
        hub.pull(MINE)
    assert cached() == ["1_Pooling/config.json", "modules.json"]
    assert not hub.is_present(MINE)
    remote.wrong.clear()
    assert (hub.pull(MINE).folder / "model.safetensors").read_bytes() == right


def test_wrong_bytes_of_a_small_file_are_noticed_too(remote: Hub) -> None:
    remote.wrong["modules.json"] = b"[]"
    with pytest.raises(ModelError, match=r"modules\.json of model 'mine' came with the checksum"):
        hub.pull(MINE)
    remote.wrong["1_Pooling/config.json"] = b"[]"
    del remote.wrong["modules.json"]
    hub_cache.delete_cached(next(hub_cache.storage(REPOSITORY).glob("snapshots/*/1_Pooling/config.json")))
    with pytest.raises(ModelError, match=r"1_Pooling/config\.json"):
        hub.pull(MINE)


def test_a_damaged_copy_in_the_cache_is_repaired(remote: Hub) -> None:
    folder = hub.pull(MINE).folder
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.resolve().write_bytes(whole[:1000])
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors cannot be read.*mlbus models pull mine"):
        model_files.check_weights(MINE, hub.locate(MINE))
    another = folder / "pytorch_model.bin"
    another.write_bytes(b"of another program")
    for damaged in (whole[:1000], whole[:-1] + b"!"):
        file.resolve().write_bytes(damaged)
        assert hub.pull(MINE).fetched_bytes == len(whole)
        assert file.read_bytes() == whole
    assert another.is_file()


def test_a_shard_that_the_repository_lacks_is_named(remote: Hub, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps(index))
    remote.add(REPOSITORY, tmp_path / "source")
    reason = r"me/mine has no more that may be fetched, and that does not suffice: model-2\.safetensors.*complete copy"
    with pytest.raises(ModelUnavailable, match=reason):
        hub.pull(MINE)
    assert not hub.is_present(MINE)


def test_a_repository_of_pickles_is_refused_before_a_byte_is_fetched(remote: Hub, tmp_path: Path) -> None:
    (tmp_path / "source" / "model.safetensors").unlink()
    remote.add(REPOSITORY, tmp_path / "source")
    with pytest.raises(ModelUnavailable, match="no safetensors"):
        hub.pull(MINE)
    assert not cached()


def test_a_full_disk_is_known_before_a_byte_is_fetched(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(ModelError, match=r"model 'mine' needs 126 KB more in .* where 100 KB are free.* HF_HOME"):
        hub.pull(MINE)
    assert not [path for method, path, _ in remote.requests if method == "GET" and "/resolve/" in path]


def test_a_disk_that_fills_up_loses_nothing(remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hub.pull(MINE).folder
    remote.add(REPOSITORY, source(tmp_path / "newer", 2.0))
    with monkeypatch.context() as patched:
        patched.setattr(file_download, "http_get", _fails_on("model.safetensors", OSError(errno.ENOSPC, "full")))
        with pytest.raises(ModelError, match=r"more in .* free some"):
            hub.pull(MINE)
        patched.setattr(file_download, "http_get", _fails_on("model.safetensors", OSError(errno.EDQUOT, "quota")))
        with pytest.raises(ModelError, match="where 0 KB are free"):
            hub.pull(MINE)
    assert not partial()
    assert hub.locate(MINE, download=False) == before
    assert hub.pull(MINE).folder != before
    assert hub.locate(MINE, download=False) != before


def test_a_cache_that_may_not_be_written_is_named(remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelUnavailable, match="set HF_HOME"):
        hub.pull(MINE)


def test_messages_of_the_system_may_have_braces(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for error, words in [
        (PermissionError(errno.EACCES, "no", "/a/{b}c}"), r"/a/\{b\}c\} cannot be written \(no\)"),
        (RuntimeError("odd {name}}"), r"RuntimeError: odd \{name\}\}"),
    ]:
        with monkeypatch.context() as patched:
            patched.setattr(file_download, "http_get", _fails_on("model.safetensors", error))
            with pytest.raises(ModelUnavailable, match=words):
                hub.pull(MINE)


def test_each_refusal_of_the_hub_says_what_to_do(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(match: str, **fields: object) -> None:
        with pytest.raises(ModelUnavailable, match=match):
            hub.pull(own(**{"repository": REPOSITORY, **fields}))

    refused("no repository nobody/nothing", repository="nobody/nothing")
    refused("no revision v9; correct `revision`", revision="v9")
    remote.gated = True
    refused("accept its licence on the Hub and set HF_TOKEN")
    remote.gated, remote.token = False, "secret"
    refused("or it is private")
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.pull(MINE)
    remote.rate_limited = True
    refused("too many requests from here; try again in 7 s")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("HF_HUB_OFFLINE forbids")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    refused("could not be fetched from http://127.0.0.1:1 .*check the connection")
    assert hub.is_present(MINE)
    assert hub.locate(MINE)


def test_a_pinned_revision_stays_when_the_branch_moves(remote: Hub, tmp_path: Path) -> None:
    first = remote.add(REPOSITORY, tmp_path / "source")
    remote.add(REPOSITORY, source(tmp_path / "newer", 2.0))
    pinned = own(repository=REPOSITORY, revision=first)
    assert hub.pull(pinned).folder.name == first
    assert not hub.is_present(MINE)
    assert hub.pull(MINE).folder.name != first
    assert hub.locate(pinned).name == first


def test_what_no_entry_uses_can_be_deleted_and_nothing_else(remote: Hub, tmp_path: Path) -> None:
    first = hub.pull(MINE).folder
    remote.add("you/other", tmp_path / "source")
    other = hub.pull(own(repository="you/other")).folder
    remote.add(REPOSITORY, source(tmp_path / "newer", 2.0))
    second = hub.pull(MINE).folder
    blobs = hub_cache.storage(REPOSITORY) / "blobs"
    (blobs / "abc.12345678.incomplete").write_bytes(b"x" * 1000)
    running = blobs / "def.12345678.incomplete"
    running.write_bytes(b"x")
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / blobs.parent.name
    with WeakFileLock(locks / "def.lock"):
        (found,) = hub_cache.survey({REPOSITORY}, [MINE]).superfluous
    assert found.revisions == (first.name,)
    assert 121_000 < found.size_bytes < 122_000
    found.remove()
    assert not first.exists()
    assert partial() == [running]
    assert hub.locate(MINE, download=False) == second
    assert model_files.check_weights(MINE, second)
    assert (other / "model.safetensors").is_file()


def test_the_weights_of_a_model_can_be_deleted_unless_another_entry_uses_them(remote: Hub) -> None:
    hub.pull(MINE)
    assert not hub_cache.survey({REPOSITORY}, [MINE]).superfluous
    survey = hub_cache.survey({REPOSITORY}, [])
    for one in survey.superfluous:
        one.remove()
    assert survey.size_bytes > 120_000
    assert not hub.is_present(MINE)
    assert not hub_cache.survey({REPOSITORY}, []).superfluous


def test_a_cache_that_is_damaged_is_left_alone_and_named(remote: Hub) -> None:
    folder = hub.pull(MINE).folder
    (folder / "model.safetensors").resolve().unlink()
    survey = hub_cache.survey({REPOSITORY}, [])
    assert not survey.superfluous
    assert REPOSITORY.replace("/", "--") in survey.unreadable[0]
    hub.pull(MINE)
    assert hub_cache.survey({REPOSITORY}, []).superfluous
