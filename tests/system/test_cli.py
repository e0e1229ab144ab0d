"""The `mlbus` command as a person or a script runs it: real processes against a real nats-server and a real model."""

import json
import math
import re
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nats_server import PASSWORDS
from shell import MLBUS
from workers import clean_environment

from models.errors import ModelUnavailable
from service.bus.settings import NatsSettings
from service.cli.serve import ready_text
from subjects.client.bulk import slices

NOWHERE = "nats://127.0.0.1:1"
READY_TIMEOUT_S = 90


def mlbus(*arguments: str, text: str = "", cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, far from the settings of whoever runs the tests."""
    environ = clean_environment(XDG_CONFIG_HOME=str(cwd / "no-config"), **{"NATS_URL": NOWHERE, **variables})
    return subprocess.run([MLBUS, *arguments], input=text, capture_output=True, text=True, env=environ, cwd=cwd)


class Served:
    """`mlbus serve --embedded-nats`, its log lines read by a thread."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: dict[str, dict[str, Any]] = {}
        self._ready = threading.Event()
        ports = [part for name in ("nats", "metrics") for part in (f"--{name}-port", "0")]
        chosen = (
            "--model",
            "minilm",
            "--device",
            "cpu",
            "--dtype",
            "fp32",
            "--threads",
            "1",
            "--data-dir",
            str(folder / "data"),
        )
        self.process = subprocess.Popen(
            [MLBUS, "serve", "--embedded-nats", *ports, *chosen],
            env=clean_environment(XDG_CONFIG_HOME=str(folder), NATS_URL=NOWHERE),  # the flag wins
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            for line in lines:
                event = json.loads(line)
                self.events[event["event"]] = event
                if event["event"] == "worker.ready":
                    self._ready.set()
        self._ready.set()

    def wait_until_ready(self) -> None:
        assert self._ready.wait(READY_TIMEOUT_S)
        assert "worker.ready" in self.events

    @property
    def url(self) -> str:
        return str(self.events["nats_server.started"]["url"])

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        code = self.process.wait(30)
        self._reader.join(10)
        return code

    def ask(self, *arguments: str, text: str = "") -> Any:
        """The command's JSON."""
        done = mlbus(*arguments, "--json", text=text, cwd=self.folder, NATS_URL=self.url)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    try:
        served.wait_until_ready()
        yield served
    finally:
        if served.process.poll() is None:
            served.end(signal.SIGKILL)


def test_one_text_becomes_one_vector(served):
    reply = served.ask("embed", "def hello(): pass")
    assert (reply["model"], reply["dimensions"], len(reply["embedding"])) == ("minilm", 384, 384)
    assert reply["version"].endswith("-fp32")
    assert reply["usage"]["tokens"] == 8
    assert math.hypot(*reply["embedding"]) == pytest.approx(1, abs=1e-4)
    assert served.ask("embed", "-", text="def hello(): pass\n")["embedding"] == reply["embedding"]


def test_many_texts_become_a_list_in_their_order(served):
    lines = [f"line {number} of many" for number in range(2500)]
    (served.folder / "lines.txt").write_text("\n".join(lines))
    many = served.ask("embed", "--file", "lines.txt", "--dimensions", "8")
    assert [one["index"] for one in many] == list(range(2500))
    for place in (0, 1500, 2499):
        alone = served.ask("embed", lines[place], "--dimensions", "8")
        assert many[place]["embedding"] == pytest.approx(alone["embedding"], abs=1e-5)


def test_people_get_a_few_values_and_the_facts(served):
    done = mlbus("embed", "one [bold]text", "another", cwd=served.folder, NATS_URL=served.url)
    assert re.search(r"minilm [0-9a-f]{12}-fp32, 384 dimensions, 2 texts, \d+ tokens", done.stdout)
    assert "one [bold]text" in done.stdout
    assert done.stderr == ""


def test_similarity_is_a_score_or_a_ranking(served):
    assert served.ask("similarity", "same", "same")["score"] == pytest.approx(1, abs=1e-4)
    ranking = served.ask("similarity", "--query", "sum", "a red car", "addition", "--top-k", "1")
    assert [place["index"] for place in ranking["results"]] == [1]
    wrong = mlbus("similarity", "only one", cwd=served.folder, NATS_URL=served.url)
    assert wrong.returncode == 2
    assert "two texts" in wrong.stderr


def test_tokens_are_shown_counted_and_turned_back(served):
    shown = served.ask("tokenize", "Hello tokenizing", "--model", "minilm")
    (tokens,) = shown["results"]
    assert tokens["pieces"] == ["[CLS]", "hello", "token", "##izing", "[SEP]"]
    counted = served.ask("tokenize", "a b", "c", "--model", "minilm", "--count", "--no-special")
    assert (counted["counts"], "results" in counted) == ([2, 1], False)
    ids = [str(token) for token in tokens["ids"]]
    assert served.ask("detokenize", *ids, "--model", "minilm")["texts"] == ["hello tokenizing"]
    typed = mlbus("tokenize", "Hello", "--model", "minilm", cwd=served.folder, NATS_URL=served.url)
    assert "101" in typed.stdout
    assert "0-5" in typed.stdout
    wrong = mlbus("detokenize", "999999", "--model", "minilm", cwd=served.folder, NATS_URL=served.url)
    assert wrong.returncode == 2
    assert "token id 999999 at place 0" in wrong.stderr


def test_ping_and_models_name_the_worker(served):
    (worker,) = served.ask("ping")
    assert (worker["models"], worker["version"]) == (["minilm"], version("mlbus"))
    assert 0 < worker["ms"] < 30_000
    models = {model["id"]: model for model in served.ask("models")}
    assert models["minilm"]["loaded_by"] == [worker["id"]]
    assert models["minilm"]["present"]
    assert models["jina_v3"]["commercial"] is False


def test_doctor_finds_a_sound_worker(served):
    report = served.ask("doctor")
    found = {finding["check"]: finding for finding in report["findings"]}
    assert report["ok"]
    assert found["worker"]["status"] == found["NATS"]["status"] == found["model minilm"]["status"] == "ok"
    assert "may ask" in found["permissions"]["found"]
    assert all(finding["advice"] for finding in report["findings"] if finding["status"] != "ok")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--model", "nope"], 1, "unknown model 'nope'"),
        (["--prompt-name", "nope"], 2, "unknown prompt 'nope'"),
        (["--dimensions", "9999"], 2, "dimensions"),
        (["--prompt", "a", "--prompt-name", "query"], 2, "'prompt' and 'prompt_name'"),
        (["--file", "nowhere.txt"], 2, "nowhere.txt"),
        (["--file", "-"], 2, "line 2 of - is blank"),
        (["--nats-url", "http://x"], 2, "nats://"),
    ],
)
def test_what_embed_refuses_is_one_line(served, arguments, code, told):
    done = mlbus("embed", "text", *arguments, text="a\n\nb\n", cwd=served.folder, NATS_URL=served.url)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_signal_drains_and_ends_well(served):
    assert served.end(signal.SIGTERM) == 0
    assert served.events["worker.stopped"]["code"] == 0


def test_without_a_server_each_command_says_so(tmp_path):
    for arguments in (["embed", "text"], ["similarity", "a", "b"], ["ping"], ["serve", "--metrics-port", "0"]):
        done = mlbus(*arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert f"mlbus: no NATS server answers at {NOWHERE}" in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_server_the_catalogue_is_still_there(tmp_path):
    done = mlbus("models", "--json", cwd=tmp_path)
    assert done.returncode == 0
    assert {model["loaded_by"] for model in json.loads(done.stdout)} == {None}
    assert "no NATS server" in mlbus("models", cwd=tmp_path).stderr


def test_doctor_says_what_to_do_about_settings_and_server(tmp_path):
    done = mlbus("doctor", cwd=tmp_path, MLBUS_DEVICE="abacus")
    assert done.returncode == 1
    failed = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert [line.split()[1] for line in failed] == ["settings", "NATS"]
    assert "device" in failed[0]
    assert "-> start one" in done.stdout


def test_without_a_worker_each_command_says_so(nats_url, tmp_path):
    embed = mlbus("embed", "text", cwd=tmp_path, NATS_URL=nats_url)
    assert (embed.returncode, embed.stderr) == (
        1,
        "mlbus: no worker listens on ml.embed; start one with `mlbus serve`\n",
    )
    ping = mlbus("ping", cwd=tmp_path, NATS_URL=nats_url)
    assert ping.returncode == 1
    assert ping.stderr.startswith("mlbus: no worker answers")


def test_what_the_server_forbids_is_said_at_once(secured_server, tmp_path):
    as_worker = {"NATS_USER": "worker", "NATS_PASSWORD": PASSWORDS["worker"], "NATS_INBOX_PREFIX": "_INBOX_worker"}
    done = mlbus("embed", "text", cwd=tmp_path, NATS_URL=secured_server.url, **as_worker)
    assert done.returncode == 1
    assert "does not let user 'worker' publish on ml.embed" in done.stderr
    change = mlbus("models", "unload", "MiniLM", "--worker", "x", cwd=tmp_path, NATS_URL=secured_server.url)
    assert change.returncode == 1
    assert "needs the role admin" in change.stderr
    assert "MLBUS_ADMIN_PASSWORD in var/nats-credentials.env" in change.stderr
    wrong = mlbus("ping", cwd=tmp_path, NATS_URL=secured_server.url, NATS_USER="worker", NATS_PASSWORD="guess")
    assert wrong.returncode == 1
    assert "refused user 'worker'" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        ([], {"MLBUS_DEVICE": "abacus"}, "device"),
        ([], {"MLBUS_MODEL": "x"}, "unknown variable MLBUS_MODEL; did you mean MLBUS_MODELS?"),
        (["--config", "nowhere.toml"], {}, "there is no settings file nowhere.toml"),
        (["--threads", "0"], {}, "threads"),
        (["--nats-port", "4333"], {}, "--nats-port is for a server of our own: add --embedded-nats"),
        (["--nats-monitor-port", "0"], {}, "--nats-monitor-port is for a server of our own: add --embedded-nats"),
        (["--embedded-nats", "--nats-monitor-port", "0"], {}, "--nats-monitor-port is for monitoring: add --monitor"),
        (["--monitor"], {}, "--monitor is for a server of our own"),
        (["--embedded-nats", "--nats-url", "a"], {}, "leave one of them out"),
        (["--device", "abacus"], {}, "--device"),
        (["--frobnicate"], {}, "--frobnicate"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path, arguments, variables, told):
    done = mlbus("serve", *arguments, cwd=tmp_path, **variables)
    assert done.returncode == 2
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_the_printed_settings_are_a_settings_file(tmp_path):
    flags = ("--model", "minilm", "--model", "mine", "--threads", "3")
    printed = mlbus("serve", *flags, "--print-config", cwd=tmp_path, MLBUS_GRACE_S="1.5").stdout
    assert tomllib.loads(printed)["models"] == ["minilm", "mine"]
    assert tomllib.loads(printed)["grace_s"] == 1.5
    (tmp_path / "mlbus.toml").write_text(printed)
    assert mlbus("serve", "--print-config", cwd=tmp_path).stdout == printed


@pytest.mark.parametrize("timeout", ["inf", "nan", "1e300", "901", "0", "-1"])
def test_a_timeout_that_no_request_can_have_is_refused(tmp_path, timeout):
    done = mlbus("ping", "--timeout", timeout, cwd=tmp_path)
    assert done.returncode == 2
    assert "--timeout" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "redirection", "code"),
    [
        ("serve --print-config", ">/dev/full", 1),
        ("models", ">/dev/full", 1),
        ("models --json", ">/dev/full", 1),
        ("models", ">&-", 0),
        ("models --json", ">&-", 0),
        ("models", "2>&-", 0),
        ("models", "| true", 0),
    ],
)
def test_output_that_cannot_be_written_is_no_traceback(tmp_path, arguments, redirection, code):
    environ = clean_environment(NATS_URL=NOWHERE, XDG_CONFIG_HOME=str(tmp_path))
    command = ["bash", "-c", f"{MLBUS} {arguments} {redirection}"]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert not {"Traceback", "Exception"} & set(re.findall(r"\w+", done.stderr))
    assert ("No space left" in done.stderr) == ("full" in redirection)


def test_ascii_output_replaces_what_it_cannot_show(tmp_path):
    entry = '[catalogue.mine]\nkind = "embedding"\nfolder = "here"\nlicence = "à moi"\n'
    (tmp_path / "mlbus.toml").write_text(entry, "utf-8")
    done = mlbus("models", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "? moi" in done.stdout


def test_the_command_helps(tmp_path):
    assert mlbus("--version", cwd=tmp_path).stdout == f"mlbus {version('mlbus')}\n"
    assert "Start a worker" in mlbus("--help", cwd=tmp_path).stdout
    assert "Did you mean 'embed'?" in mlbus("embd", cwd=tmp_path).stderr


def test_asking_does_not_wait_for_torch(tmp_path):
    script = (
        "import sys; sys.argv[1:] = ['embed', 'text']\n"
        "from service.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules, 'pydantic_settings' in sys.modules)\n"
    )
    environ = clean_environment(NATS_URL=NOWHERE, XDG_CONFIG_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.stdout.split()[:2] == ["1", "False"]


def test_a_person_is_told_where_things_are():
    encoder = SimpleNamespace(
        model="minilm", kind="embedding", device="cpu", dtype="fp32", version="abc-fp32", notes=("runs in fp32",)
    )
    server = SimpleNamespace(credentials=Path("var/nats-credentials.env"), monitor_url="http://127.0.0.1:8222")
    nats = NatsSettings(url="nats://127.0.0.1:4333")
    missing = {"smollm2": ModelUnavailable("smollm2", "its file is damaged")}
    manager = SimpleNamespace(defaults={"embedding": "minilm", "prompt": "smollm2"}, missing=missing)
    started: Any = SimpleNamespace(
        nats=nats,
        server=server,
        models=[encoder],
        metrics_port=9464,
        metrics_host="::1",
        manager=manager,
        gateway="http://127.0.0.1:8080",
    )
    text = ready_text(started, NatsSettings().url)
    for told in (
        "minilm (default for embedding) on cpu in fp32",
        "runs in fp32",
        "nats-credentials.env",
        "model 'smollm2' is unavailable: its file is damaged; it is tried again later",
        "http://[::1]:9464/metrics",
        "nats req ml.embed",
        "http://127.0.0.1:8080",
    ):
        assert told in text
    assert "export NATS_URL=nats://127.0.0.1:4333" in text
    assert "export" in ready_text(started, None)
    assert "export" not in ready_text(started, nats.url)


def test_requests_hold_what_fits_in_order():
    texts = ["a" * 40, "b" * 70, "c" * 200, "d"]
    assert list(slices(texts, 100)) == [["a" * 40], ["b" * 70], ["c" * 200], ["d"]]
    assert [len(part) for part in slices(["x"] * 2049, 10**6)] == [1024, 1024, 1]
