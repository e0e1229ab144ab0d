"""The worker and the command as an ordinary user: sources that this user cannot change, and a home of its own.

A suite that runs as root runs them as `nobody`; any other as the user that it is, with sources that nobody may write.
It takes half a minute, for the real processes, which import torch.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from nats_server import REPOSITORY
from shell import MLBUS
from workers import clean_environment, worker_process

SOURCES = ("subjects", "models", "service", "nats-server.conf", "pyproject.toml")
NOBODY = 65534
MAY_READ = 1 << 2
"""The capability CAP_DAC_READ_SEARCH: Python itself may lie in root's own home."""


@dataclass(frozen=True)
class User:
    """How a command is run as the user: what stands before it, in which folder, with which home."""

    prefix: tuple[str, ...]
    sources: Path
    home: Path

    def command(self, *arguments: str) -> list[str]:
        return [*self.prefix, MLBUS, *arguments]

    def environment(self, **variables: str) -> dict[str, str]:
        own = {"HOME": str(self.home), "USER": "nobody", "PYTHONPATH": str(self.sources), **variables}
        kept = clean_environment(**own)
        return {name: value for name, value in kept.items() if not name.startswith(("HF_", "XDG_"))}

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment(**variables)
        command = self.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=self.sources)


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    folder = Path(tempfile.mkdtemp(prefix="mlbus-user-"))
    sources, home = folder / "mlbus", folder / "home"
    sources.mkdir()
    home.mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, sources / name)
    for path in (sources, *sources.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o755)
    if os.getuid() == 0:
        os.chown(home, NOBODY, NOBODY)
    try:
        yield User(_prefix(), sources, home)
    finally:
        for path in (sources, *sources.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


def _prefix() -> tuple[str, ...]:
    if os.getuid() != 0:
        return ()
    status = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    read = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    ids = ("--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups")
    return ("setpriv", *ids, *(read if int(status, 16) & MAY_READ else ()))


@pytest.fixture(scope="module")
def url(user: User) -> Iterator[str]:
    """A worker with minilm and tiny_coder, and the nats-server that it starts."""
    ports = [part for name in ("nats", "metrics") for part in (f"--{name}-port", "0")]
    models = ("--model", "minilm", "--model", "tiny_coder", "--device", "cpu", "--threads", "1")
    command = user.command("serve", "--embedded-nats", *ports, *models, "--data-dir", str(user.home / "data"))
    with worker_process(command, user.sources, user.environment()) as events:
        yield events["nats_server.started"]["url"]


def test_the_sources_cannot_be_written(user: User) -> None:
    script = "import os, sys; sys.exit(os.access(sys.argv[1], os.W_OK) or os.getuid() == 0)"
    for path in (user.sources, user.sources / "models", user.sources / "service" / "app.py"):
        assert subprocess.run([*user.prefix, sys.executable, "-c", script, str(path)]).returncode == 0


def test_a_worker_answers(user: User, url: str) -> None:
    done = user.run("embed", "def hello(): pass", "--json", NATS_URL=url)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    assert (reply["model"], reply["dimensions"]) == ("minilm", 384)
    done = user.run("generate", "def fib(n):", "--max-tokens", "4", "--json", NATS_URL=url)
    assert (done.returncode, json.loads(done.stdout)["model"]) == (0, "tiny_coder"), done.stderr
    assert [path.name for path in user.home.iterdir()] == ["data"]  # nor does any library leave something there


def test_doctor_finds_nothing_wrong_but_the_folder_for_data(user: User, url: str) -> None:
    """Without --data-dir data would go below the sources; with one of its own nothing fails."""
    models = {"MLBUS_MODELS": "minilm,tiny_coder", "NATS_URL": url}
    done = user.run("doctor", "--json", **models)
    failed = [finding for finding in json.loads(done.stdout)["findings"] if finding["status"] == "fail"]
    assert [(one["check"], one["advice"]) for one in failed] == [("data dir", "choose another with --data-dir")]
    done = user.run("doctor", "--json", MLBUS_DATA_DIR=str(user.home / "data"), **models)
    found = json.loads(done.stdout)
    assert (done.returncode, [one for one in found["findings"] if one["status"] == "fail"]) == (0, [])


def test_models_are_listed_added_and_served(user: User, url: str) -> None:
    done = user.run("models", "list", "--json", NATS_URL=url)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in json.loads(done.stdout)}
    assert (rows["minilm"]["present"], len(rows["minilm"]["loaded_by"])) == (True, 1)
    settings = user.home / "mlbus.toml"
    folder = str(user.sources / "models" / "bundled" / "tiny_coder")
    added = ("models", "add", "coder", folder, "--kind", "generation", "--no-check", "--config", str(settings))
    done = user.run(*added, MLBUS_DATA_DIR=str(user.home / "data"))
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(settings.read_text())["catalogue"]["coder"]["folder"] == folder


def test_a_start_without_a_folder_for_data_says_what_to_do(user: User, url: str) -> None:
    ports = [part for name in ("nats", "metrics") for part in (f"--{name}-port", "0")]
    done = user.run("serve", "--embedded-nats", *ports)
    assert done.returncode == 2
    assert "choose another folder with --data-dir" in done.stderr
    assert "Traceback" not in done.stderr
