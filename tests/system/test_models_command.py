"""`mlbus models` as a person or a script runs it: real processes, a Hub of our own named by HF_ENDPOINT."""

import json
import os
import re
import subprocess
import termios
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import Hub, hub_server
from safetensors.numpy import save_file
from shell import MLBUS
from workers import clean_environment

from models.catalogue import load_catalogue
from models.weights import hub

NOWHERE = "nats://127.0.0.1:1"
SETTINGS = """\
models = ["mine"]  # kept as it is

[catalogue.mine]
kind = "embedding"
repository = "me/mine"
licence = "CC-BY-NC-4.0"
commercial = false"""


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Hub]:
    """A Hub with the repository me/mine, and settings with an entry for it."""
    (tmp_path / "mlbus.toml").write_text(SETTINGS)
    with hub_server() as server:
        server.add("me/mine", model(tmp_path / "source"))
        yield server


def model(folder: Path, value: float = 1.0) -> Path:
    """A folder in sentence-transformers layout."""
    folder.mkdir()
    (folder / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    save_file({"a": np.full(30_000, value, np.float32)}, folder / "model.safetensors")
    return folder


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    clean = clean_environment(XDG_CONFIG_HOME=str(tmp_path / "no-config"), NATS_URL=NOWHERE)
    kept = {name: value for name, value in clean.items() if not name.startswith("HF_")}
    return {**kept, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1", **variables}


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """`mlbus models` to its end."""
    return subprocess.run(
        [MLBUS, "models", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(cwd, **variables),
        cwd=cwd,
    )


def facts(*arguments: str, cwd: Path, **variables: str) -> Any:
    """What it prints as JSON."""
    done = run(*arguments, "--json", cwd=cwd, **variables)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(code: int, told: str, *arguments: str, cwd: Path, **variables: str) -> None:
    """It ends with this code and one line that tells."""
    done = run(*arguments, cwd=cwd, **variables)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in " ".join(done.stderr.replace("│", "").split())
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_model_is_pulled_looked_at_and_pruned(remote: Hub, tmp_path: Path) -> None:
    done = run("pull", "mine", cwd=tmp_path, HF_ENDPOINT=remote.url)
    assert done.returncode == 0
    assert "licence: CC-BY-NC-4.0 (non-commercial)" in done.stdout
    assert "forbids commercial use" in done.stderr
    assert str(tmp_path / "hf") in done.stdout

    info = facts("info", "mine", cwd=tmp_path, HF_HUB_OFFLINE="1")
    (weights,) = info["weights"]
    assert (info["source"], info["present"], info["versions"]) == ("hub", True, ["base"])
    assert (weights["files"], weights["problem"], len(weights["sha256"])) == (["model.safetensors"], None, 64)
    assert weights["size_bytes"] == (tmp_path / "source" / "model.safetensors").stat().st_size
    assert weights["sha256"] in run("info", "mine", cwd=tmp_path).stdout

    assert facts("prune", "mine", "--dry-run", cwd=tmp_path)["deleted"] is False
    refused(2, "give --yes, or --dry-run", "prune", "mine", cwd=tmp_path)
    assert facts("prune", cwd=tmp_path)["size_bytes"] == 0
    pruned = facts("prune", "mine", "--yes", cwd=tmp_path)
    assert (pruned["deleted"], pruned["size_bytes"] > 120_000) == (True, True)
    assert facts("info", "mine", cwd=tmp_path)["present"] is False


@pytest.mark.slow
def test_what_cannot_be_served_is_said_before_its_weights_are_fetched(remote: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "coder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    remote.add("me/coder", folder)
    why = "its architecture, mamba, is not served: it keeps a state instead of keys and values"

    told = run("info", "me/coder", cwd=tmp_path, HF_ENDPOINT=remote.url)
    assert told.returncode == 0, told.stderr
    assert re.search(rf"^served +no: {why}", told.stdout, re.MULTILINE)
    added = run("add", "coder", "me/coder", "--kind", "generation", cwd=tmp_path, HF_ENDPOINT=remote.url)
    assert added.returncode == 1
    assert why in added.stderr
    assert remote.asked("model.safetensors") == []


def test_what_the_variables_say_is_honoured(remote: Hub, tmp_path: Path) -> None:
    remote.token = "secret"
    refused(
        1, "'mine' is unavailable: there is no repository me/mine", "pull", "mine", cwd=tmp_path, HF_ENDPOINT=remote.url
    )
    remote.requests.clear()
    refused(1, "HF_HUB_OFFLINE", "pull", "mine", cwd=tmp_path, HF_ENDPOINT=remote.url, HF_HUB_OFFLINE="1")
    assert not remote.requests
    (pulled,) = facts("pull", "mine", cwd=tmp_path, HF_ENDPOINT=remote.url, HF_TOKEN="secret")
    assert Path(pulled["folder"]).is_relative_to(tmp_path / "hf")
    assert pulled["fetched_bytes"] > 120_000
    elsewhere = {"HF_HOME": str(tmp_path / "other")}
    assert not facts("info", "mine", cwd=tmp_path, **elsewhere)["present"]


def test_progress_is_drawn_for_a_person(remote: Hub, tmp_path: Path) -> None:
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    variables = environment(tmp_path, HF_ENDPOINT=remote.url, TERM="xterm")
    process = subprocess.Popen(
        [MLBUS, "models", "pull", "mine"], cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
    except OSError:  # how a terminal says that the last writer is gone
        pass
    os.close(master)
    assert process.wait() == 0
    assert b"mine: verifying the files" in shown
    assert b"120.1/120.1 kB" in shown


def test_the_list_is_there_with_and_without_its_name(remote: Hub, tmp_path: Path) -> None:
    rows = {row["id"]: row for row in facts("list", cwd=tmp_path)}
    assert rows == {row["id"]: row for row in facts(cwd=tmp_path)}
    assert (rows["mine"]["present"], rows["minilm"]["present"]) == (False, True)
    assert "CC-BY-NC-4.0 (non-commercial)" in run(cwd=tmp_path).stdout


@pytest.mark.slow
def test_a_folder_or_a_repository_is_added_without_disturbing_the_settings(remote: Hub, tmp_path: Path) -> None:
    told = run(
        "add", "local", "source", "--prompt", "query=find: ", "--max-tokens", "128", "--no-check", cwd=tmp_path
    ).stdout
    assert "mlbus serve --model local" in told
    graph = ("--onnx-file", "fp16=onnx/half.onnx")
    added = facts("add", "remote", "me/mine", "--revision", "v1", *graph, "--no-check", cwd=tmp_path)
    assert added["entry"]["onnx_files"] == {"fp16": "onnx/half.onnx"}
    text = (tmp_path / "mlbus.toml").read_text()
    assert text.startswith(SETTINGS)
    assert tomllib.loads(text)["catalogue"]["local"] == {
        "folder": str(tmp_path / "source"),
        "kind": "embedding",
        "served_by": "torch",
        "max_tokens": 128,
        "prompts": {"query": "find: "},
    }
    assert facts("info", "local", cwd=tmp_path)["weights"][0]["folder"] == str(tmp_path / "source")
    assert facts("pull", "local", cwd=tmp_path)[0]["source"] == "folder"
    assert not facts("prune", "local", "--yes", cwd=tmp_path)["deleted"]
    assert (tmp_path / "source" / "model.safetensors").is_file()


@pytest.mark.slow
def test_what_is_added_has_been_loaded(remote: Hub, tmp_path: Path) -> None:
    """A folder as it is; a repository once it is fetched."""
    minilm = str(hub.locate(load_catalogue().get("minilm")))
    loaded = facts("add", "local", minilm, "--max-tokens", "100", cwd=tmp_path)["loaded"]
    assert (loaded["kind"], loaded["dimensions"], loaded["max_tokens"]) == ("embedding", 384, 100)
    remote.add("me/coder", hub.locate(load_catalogue().get("tiny_coder")))
    told = run("add", "coder", "me/coder", "--kind", "generation", cwd=tmp_path, HF_ENDPOINT=remote.url).stdout
    assert re.search(r"loaded coder in \w+ on cpu: \d+ tokens, 0\.\d\d GB", told)
    assert "mlbus models pull" not in told
    assert facts("info", "coder", cwd=tmp_path)["present"]


def test_a_model_that_does_not_fit_is_not_added(remote: Hub, tmp_path: Path) -> None:
    coder = str(hub.locate(load_catalogue().get("tiny_coder")))
    limit = {"MLBUS_MEMORY__BUDGET_GB": "0.001"}
    refused(1, "the budget is 1 MB", "add", "new", coder, "--kind", "generation", cwd=tmp_path, **limit)
    assert (tmp_path / "mlbus.toml").read_text() == SETTINGS


@pytest.mark.slow
def test_the_prompts_that_a_folder_brings_are_shown(remote: Hub, tmp_path: Path) -> None:
    own = tmp_path / "source" / "config_sentence_transformers.json"
    own.write_text('{"prompts": {"own": "read: "}}')
    facts("add", "local", "source", "--prompt", "query=find: ", "--default-prompt", "own", "--no-check", cwd=tmp_path)
    info = facts("info", "local", cwd=tmp_path)
    assert (info["prompts"], info["default_prompt"]) == ({"own": "read: ", "query": "find: "}, "own")
    lines = run("info", "local", cwd=tmp_path).stdout.splitlines()
    assert "prompts         own='read: ', query='find: '" in lines
    assert all(line == line.rstrip() for line in lines)
    own.write_text("[]")
    assert "config_sentence_transformers.json cannot be read" in run("info", "local", cwd=tmp_path).stderr


def test_settings_are_made_where_there_are_none(tmp_path: Path) -> None:
    model(tmp_path / "source")
    facts("add", "mine", "source", "--config", "own.toml", "--no-check", cwd=tmp_path)
    assert tomllib.loads((tmp_path / "own.toml").read_text())["catalogue"]["mine"]["kind"] == "embedding"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["add", "mine", "me/other"], 2, "is in the catalogue already"),
        (["add", "minilm", "me/other"], 2, "is in the catalogue already"),
        (["add", "no spaces", "me/other"], 2, "id: String should match pattern"),
        (["add", "new", "./nowhere"], 2, "neither a folder"),
        (["add", "new", "me/other", "--prompt", "query"], 2, "--prompt takes NAME=TEXT"),
        (["add", "new", "me/other", "--onnx-file", "int3=x"], 2, "onnx_files"),
        (["add", "new", "empty"], 1, "no readable modules.json"),
        (["add", "new", "broken"], 1, "model.safetensors cannot be read"),
        (["add", "new", "source"], 1, "nothing was added; --no-check adds an entry unloaded mlbus: model 'new' is"),
        (["add", "new", "source", "--default-prompt", "zz"], 2, "default prompt 'zz' is none of its prompts: -"),
        (["add", "new", "me/other", "--pooling", "median"], 2, "--pooling takes one of mean, cls"),
        (["--json", "list"], 2, "write it behind the command: mlbus models list --json"),
        (["--config", "nowhere.toml", "list"], 2, "write it behind the command: mlbus models list --config"),
        (["plan", "mine", "--reduce", "qodo"], 2, "qodo is none of the models to be planned"),
        (["pull", "nobody"], 2, "unknown model 'nobody'"),
        (["pull", "jina_v3", "nobody"], 2, "unknown model 'nobody'"),
        (["info", "nobody"], 2, "unknown model 'nobody'"),
        (["prune", "nobody", "--yes"], 2, "unknown model 'nobody'"),
        (["pul", "mine"], 2, "No such command 'pul'"),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(
    remote: Hub, tmp_path: Path, arguments: list[str], code: int, told: str
) -> None:
    (tmp_path / "empty").mkdir()
    broken = model(tmp_path / "broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    refused(code, told, *arguments, cwd=tmp_path, HF_ENDPOINT=remote.url)
    assert (tmp_path / "mlbus.toml").read_text() == SETTINGS
    assert not remote.requests


def test_settings_that_take_no_table_are_left_as_they_are(tmp_path: Path) -> None:
    inline = 'catalogue = { mine = { kind = "embedding", repository = "me/mine" } }\n'
    (tmp_path / "mlbus.toml").write_text(inline)
    refused(2, "add it by hand", "add", "new", "me/other", "--no-check", cwd=tmp_path)
    assert (tmp_path / "mlbus.toml").read_text() == inline
