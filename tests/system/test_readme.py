"""The README, run as written against a worker with the real model, and its tables held against the code.

A block runs in a folder that looks like the repository after `make run`; `<!-- not run: why -->` before it exempts it.
The ```text block after it shows what it prints: `…` stands for anything, alone on a line for any lines, and numbers
with a point are equal within 0.01.
"""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from nats_server import REPOSITORY
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from workers import clean_environment

from models.catalogue import load_catalogue
from service.bus.settings import _VARIABLES
from service.cli.main import app
from service.config import Settings, read_settings
from subjects import (
    EmbedBatchRequest,
    EmbedRequest,
    GenerateBatchRequest,
    GenerateRequest,
    SimilarityRequest,
    names,
)
from subjects.errors import CODES
from subjects.finetune import FinetuneOptions, FinetuneRequest

README = (REPOSITORY / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^(?P<exempt><!-- not run: [^\n]+ -->\n)?```(?P<kind>\w+)\n(?P<code>.*?)^```\n", re.M | re.S)
ADDRESS = "nats://127.0.0.1:4222"
ANY_LINES = "…"

NATS_REQ = """
import asyncio, os, sys
import nats

async def main(req, subject, body, *options):
    assert req == "req"
    headers = dict(options[i + 1].split(":", 1) for i, option in enumerate(options) if option == "-H")
    nc = await nats.connect(os.environ["NATS_URL"])
    replies = await nc.subscribe(nc.new_inbox())
    await nc.publish(subject, body.encode(), reply=replies.subject, headers=headers or None)
    while (reply := await replies.next_msg(timeout=60)).data:
        assert "Nats-Service-Error" not in (reply.headers or {}), reply.data
        print(reply.data.decode())
        if "--wait-for-empty" not in options:
            break
    assert "Status" not in (reply.headers or {}), "nobody serves this"
    await nc.close()

asyncio.run(main(*sys.argv[1:]))
"""
"""Stands in for `nats req`: the same bytes and headers on the same subject, each reply on a line. Fails on errors."""


@dataclass(frozen=True)
class Block:
    """A block that runs, and what it prints; None where the README does not show it."""

    line: int
    kind: str
    code: str
    shown: str | None


def blocks() -> Iterator[Block]:
    found = list(BLOCK.finditer(README))
    for block, following in zip(found, [*found[1:], None], strict=True):
        if block["kind"] in ("sh", "python") and not block["exempt"]:
            shown = following["code"] if following and following["kind"] == "text" else None
            yield Block(README[: block.start()].count("\n") + 1, block["kind"], block["code"], shown)


@dataclass(frozen=True)
class Checkout:
    """A folder like the repository while `make run` runs."""

    folder: Path
    url: str
    metrics_port: int

    def run(self, block: Block) -> str:
        code = block.code.replace(ADDRESS, self.url)
        command = (
            [sys.executable, "-c", code] if block.kind == "python" else ["bash", "-e", "-o", "pipefail", "-c", code]
        )
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environ = clean_environment(NATS_URL=self.url, PATH=path, XDG_CONFIG_HOME=str(self.folder))
        done = subprocess.run(command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    folder = tmp_path_factory.mktemp("mlbus")
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "subjects").symlink_to(REPOSITORY / "subjects")
    nats = folder / "bin" / "nats"
    nats.parent.mkdir()
    nats.write_text(f"#!{sys.executable}\n{NATS_REQ}")
    nats.chmod(0o755)
    ports = ("--nats-port", "0", "--nats-monitor-port", "0", "--metrics-port", "0")
    alone = ("--threads", "1")  # several that share busy cores wait for each other at every product
    command = [folder / ".venv" / "bin" / "mlbus", "serve", "--embedded-nats", *ports, *alone]
    with subprocess.Popen(command, cwd=folder, env=clean_environment(), stderr=subprocess.PIPE, text=True) as worker:
        try:
            events: dict[str, Any] = {}
            while "worker.ready" not in events:
                line = worker.stderr.readline()
                assert line.startswith("{"), f"the worker did not start: {line or list(events)}"
                events[json.loads(line)["event"]] = json.loads(line)
            yield Checkout(folder, events["nats_server.started"]["url"], events["worker.ready"]["metrics_port"])
        finally:
            worker.terminate()
            worker.communicate(timeout=30)
    assert worker.returncode == 0


def spread(shown: list[str], count: int) -> list[str]:
    """The same with as many lines of `…` in place of the first one, if there is one, as make it `count` lines."""
    if ANY_LINES not in shown:
        return shown
    at = shown.index(ANY_LINES)
    return shown[:at] + [ANY_LINES] * max(1, count - len(shown) + 1) + shown[at + 1 :]


def is_as_shown(shown: str, printed: str) -> bool:
    if re.fullmatch(re.escape(shown).replace("…", ".*"), printed):
        return True
    pairs = list(zip(shown.split(), printed.split(), strict=False))
    return len(shown.split()) == len(printed.split()) and all(_is_alike(*pair) for pair in pairs)


def _is_alike(shown: str, printed: str) -> bool:
    number = re.compile(r"-?\d+\.\d+")
    if number.fullmatch(shown) and number.fullmatch(printed):
        return abs(float(shown) - float(printed)) <= 0.01
    return re.fullmatch(re.escape(shown).replace("…", ".*"), printed) is not None


@pytest.mark.parametrize("block", list(blocks()), ids=lambda block: f"line {block.line}")
def test_blocks_do_what_they_say(checkout: Checkout, block: Block) -> None:
    printed = checkout.run(block)
    if block.shown is not None:
        lines = printed.splitlines()
        shown = spread(block.shown.splitlines(), len(lines))
        assert len(lines) == len(shown), printed
        for line, expected in zip(lines, shown, strict=True):
            assert is_as_shown(expected.rstrip(), line.rstrip()), f"shown:   {expected}\nprinted: {line[:300]}"


def test_the_metrics_are_those_that_a_worker_has(checkout: Checkout) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{checkout.metrics_port}/metrics", timeout=10) as reply:
        kinds = re.findall(r"^# TYPE (mlbus_\w+)", reply.read().decode(), re.M)
    assert names_in("metric") == {kind for kind in kinds if not kind.endswith("_created")}


QUOTED = {
    "py": ["python/vectors.py"],
    "go": ["go/vectors/main.go"],
    "js": ["node/client.mjs", "node/vectors.mjs"],
    "rust": ["rust/src/bin/vectors.rs"],
    "java": ["java/src/main/java/Vectors.java"],
    "c": ["c/vectors.c"],
}
"""The samples of each kind of block that is quoted from them."""


def test_code_of_the_samples_is_quoted_as_it_stands_there() -> None:
    quotes = [(block["kind"], block["code"]) for block in BLOCK.finditer(README) if block["kind"] in QUOTED]
    assert {kind for kind, _ in quotes} == set(QUOTED)
    for kind, quote in quotes:
        samples = [(REPOSITORY / "samples" / name).read_text("utf-8") for name in QUOTED[kind]]
        assert any(stands_in(quote, sample) for sample in samples), quote


def stands_in(quote: str, sample: str) -> bool:
    """Whether its lines do, in their order, with others between them or not, and indented or not."""
    lines = iter(line.strip() for line in sample.splitlines())
    return all(line.strip() in lines for line in quote.splitlines())


def test_the_settings_file_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = (block["code"] for block in BLOCK.finditer(README) if block["kind"] == "toml")
    for name in [name for name in os.environ if name.startswith("MLBUS_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "mlbus.toml"
    file.write_text(code)
    settings = read_settings(file)
    assert all(load_catalogue(settings.catalogue).get(model).has_source for model in settings.models)


def test_relative_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", README)
    assert len(links) > 5
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


# Tables


def table(*heading: str) -> list[list[str]]:
    """The cells of the rows below the heading that begins so."""
    start = re.search(rf"^\| {re.escape(' | '.join(heading))} \|.*\n\|[-|]+\|\n", README, re.M)
    assert start, f"no table {heading}"
    rows = README[start.end() :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def names_in(*heading: str) -> set[str]:
    return {name for row in table(*heading) for name in code_in(row[0])}


ON_THE_SERVER = {
    names.JOBS_STREAM,
    names.JOBS_QUEUE,
    names.JOBS_BUCKET,
    names.CHECKPOINTS_BUCKET,
    names.DATA_BUCKET,
}
"""Names of streams and buckets, which no request carries."""


def test_subjects_and_headers_are_all_there() -> None:
    known = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str)} - {
        names.SERVICE,
        names.STREAM_AUTO,
        *ON_THE_SERVER,
    }
    subjects = {value for value in known if value.startswith(f"{names.SERVICE}.")}
    types = {value for value in known if "/" in value}
    assert {subject.removesuffix(".<request id>") for subject in names_in("subject")} == subjects
    assert names_in("Content-Type") == types
    assert names_in("header") == known - subjects - types


REQUESTS: dict[str, dict[str, type[BaseModel]]] = {
    "field": {"embed": EmbedRequest, "batch": EmbedBatchRequest, "similarity": SimilarityRequest},
    "parameter": {"generate": GenerateRequest, "batch": GenerateBatchRequest},
    "setting of a job": {"request": FinetuneRequest, "options": FinetuneOptions},
}
"""By the heading of their table: what its column `on` calls them."""


@pytest.mark.parametrize("heading", REQUESTS)
def test_fields_are_those_of_the_requests(heading: str) -> None:
    requests = REQUESTS[heading]
    told: dict[str, dict[str, str]] = {name: {} for name in requests}
    for fields, on, default, *_ in table(heading, "on"):
        for request in requests if on == "all" else on.split(", "):
            told[request] |= {field: default.strip("`") for field in code_in(fields)}
    for name, request in requests.items():
        assert told[name] == {field: default_of(info.default) for field, info in request.model_fields.items()}


@pytest.mark.parametrize(
    ("heading", "request_type"), [("parameter", GenerateRequest), ("setting of a job", FinetuneOptions)]
)
def test_parameters_have_their_ranges(heading: str, request_type: type[BaseModel]) -> None:
    told = {field: cell for fields, _, _, cell, _ in table(heading, "on") for field in code_in(fields)}
    ranges = {field: found for field, info in request_type.model_fields.items() if (found := range_of(info))}
    assert {field: told[field] for field in ranges} == ranges


def range_of(info: FieldInfo) -> str:
    """Of a number; nothing where the field is none."""
    bounds = {name: getattr(one, name) for one in info.metadata for name in ("ge", "gt", "le") if hasattr(one, name)}
    low = f"above {bounds['gt']}" if "gt" in bounds else bounds.get("ge")
    return f"{low} to {bounds['le']}" if "le" in bounds else ""


def default_of(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "as below"
    return "none" if value is None else json.dumps(value, default=str)


def test_errors_are_those_of_the_wire() -> None:
    told = {int(code): retryable.startswith("yes") for code, _, _, retryable in table("code", "meaning")}
    assert told == {code: error.retryable for code, error in CODES.items()}


def test_settings_have_their_names_defaults_and_flags() -> None:
    flags = {flag for parameter in typer.main.get_command(app).commands["serve"].params for flag in parameter.opts}
    known = dict(settings_of(Settings)) | {"catalogue.<id>": "none"}
    assert {code_in(row[0])[0]: row[1].strip("`") for row in table("setting")} == known
    for setting, _, flag, _ in table("setting"):
        wanted = "--" + code_in(setting)[0].removesuffix("s" if "models" in setting else "").replace("_", "-")
        assert code_in(flag) == ([wanted] if wanted in flags else [])


def settings_of(settings: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, field in settings.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield from settings_of(type(field.default), f"{prefix}{name}.")
        elif name != "catalogue":
            yield prefix + name, default_of(field.get_default(call_default_factory=True))


def test_the_server_is_found_through_the_variables_named() -> None:
    assert names_in("variable") == {*_VARIABLES, "NATS_CONTEXT"}


def test_the_models_are_those_of_the_catalogue() -> None:
    told = [(code_in(row[0])[0], *row[1:4]) for row in table("id", "kind")]
    specs = {spec.id: spec for spec in load_catalogue()}
    assert sorted(told) == sorted(
        (spec.id, spec.kind, str(spec.dimensions or ""), spec.licence) for spec in specs.values()
    )
