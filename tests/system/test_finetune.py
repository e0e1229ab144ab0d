"""A real job from the command to the swap: real weights, a real training, a worker of its own with its own server."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from shell import MLBUS
from workers import clean_environment, worker_process

FUNCTION = '''
def {verb}_{noun}(values, force=False):
    """{Verb} every {noun} of the values that somebody gave, and say how many there were."""
    found = [value for value in values if value.{noun} or force]
    for one in found:
        one.{verb}({noun}=True)
    return len(found), "{verb} {noun}"
'''
VERBS = ("open", "close", "paint", "weigh", "count", "sell", "mend", "carry")
NOUNS = ("door", "ship", "apple", "letter", "engine", "mirror")
STATES = ("queued", "collecting", "training", "verifying", "swapping", "done")
QUICK = ("--hard-negatives", "0", "--max-tokens", "48", "--learning-rate", "1e-6")


@dataclass(frozen=True)
class Machine:
    """A folder with some code, and a worker that was started there."""

    folder: Path
    environment: dict[str, str]

    def mlbus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = (MLBUS, *arguments)
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=280
        )

    def asked(self, *arguments: str) -> Any:
        done = self.mlbus(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    folder = tmp_path_factory.mktemp("machine")
    (folder / "code").mkdir()
    for noun in NOUNS:
        functions = [FUNCTION.format(verb=verb, Verb=verb.title(), noun=noun) for verb in VERBS]
        (folder / "code" / f"{noun}s.py").write_text("".join(functions))
    ports = ("--nats-port", "0", "--metrics-port", "0", "--threads", "1")
    command = [MLBUS, "serve", "--embedded-nats", "--model", "minilm", *ports]
    lenient = clean_environment(MLBUS_FINETUNE__LIMITS__REQUIRE_GAIN="false")  # so little is learned in so short a time
    with worker_process(command, folder, lenient) as events:
        url = events["nats_server.started"]["url"]
        yield Machine(folder, clean_environment(NATS_URL=url, XDG_CONFIG_HOME=str(folder)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_codebase_becomes_a_version_that_serves_and_can_be_left_again(machine: Machine) -> None:
    before = machine.asked("embed", "open the door")["version"]
    done = machine.mlbus("finetune", "code", "--promote", "--watch", "--json", *QUICK)
    jobs = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (done.stderr, jobs[-1:])
    states = list(dict.fromkeys(job["state"] for job in jobs))
    assert states == [state for state in STATES if state in states]
    assert states[-1] == "done"
    version = jobs[-1]["version"]
    assert jobs[-1]["metrics"]["mrr@10_after"] > 0
    after = machine.asked("embed", "open the door")["version"]
    assert after != before
    assert version.endswith(after.partition("-")[0])
    newest, _ = machine.asked("models", "history", "minilm")
    assert (newest["name"], newest["live"], newest["accepted"]) == (version, True, True)
    report = machine.folder / "var" / "checkpoints" / "minilm" / version / "report"
    assert {"report.json", "report.html", "map_from_parent.safetensors"} <= {file.name for file in report.iterdir()}
    assert not list((machine.folder / "var" / "checkpoints").rglob("*.bin"))
    assert list((machine.folder / "var" / "training_data").glob("day-*.jsonl"))
    assert machine.mlbus("models", "reload", "minilm", "--version", "base").returncode == 0
    assert machine.asked("embed", "open the door")["version"] == before
    assert machine.asked("models", "history", "minilm")[-1]["live"]


def test_what_cannot_be_trained_is_refused_at_once(machine: Machine, tmp_path: Path) -> None:
    for arguments, reason in {
        (str(tmp_path),): "not below",
        ("code/nowhere",): "no such",
        ("code", "--model", "nobody"): "unknown model",
        ("code", "--model", "tiny_coder"): "generates text",
        ("code", "--epochs", "0"): "epochs",
        ("code", "--batch-size", "1000000"): "batch_size",
        ("code", "--learning-rate", "nan"): "learning_rate",
    }.items():
        done = machine.mlbus("finetune", *arguments)
        assert done.returncode in (1, 2), arguments
        assert reason in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.splitlines()) == 1


def test_an_empty_folder_fails_with_what_was_found(machine: Machine) -> None:
    (machine.folder / "empty").mkdir()
    done = machine.mlbus("finetune", "empty", "--watch", "--json")
    last = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1
    assert (last["state"], last["reason"].partition(":")[0]) == ("failed", "there is too little to train on")
