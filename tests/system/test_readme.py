"""The README, run as written against a worker with the real model, and its tables held against the code.

How its blocks run is in readme_blocks.py. The nats command is a stand-in here; samples/test_nats_lines.py runs itself.
"""

import json
import os
import re
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from gguf_model import converted_folder
from nats_server import REPOSITORY
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from readme_blocks import STAND_IN, Block, Checkout, blocks, checkout

from models.catalogue import load_catalogue
from service.bus.credentials import ROLES
from service.bus.settings import _VARIABLES
from service.cli.main import app
from service.config import Settings, read_settings
from subjects import EmbedBatchRequest, EmbedRequest, GenerateBatchRequest, GenerateRequest, SimilarityRequest, names
from subjects.errors import CODES
from subjects.finetune import FinetuneOptions, FinetuneRequest

PAGE = REPOSITORY / "README.md"
README = PAGE.read_text("utf-8")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with checkout(tmp_path_factory.mktemp("mlbus"), STAND_IN, converted_folder().parent) as made:
        yield made


@pytest.mark.parametrize(
    "block", [block for block in blocks(PAGE) if block.kind in ("sh", "python") and not block.exempt], ids=str
)
def test_blocks_do_what_they_say(running: Checkout, block: Block) -> None:
    running.run(block)


def code_of(kind: str) -> str:
    """The only block of that kind."""
    (block,) = (block for block in blocks(PAGE) if block.kind == kind)
    return block.code


def test_make_run_joins_a_server_that_is_named(running: Checkout) -> None:
    told = subprocess.run(
        ["make", "--no-print-directory", "-n", "run"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    recipe = told.stdout.splitlines()[-1]
    joined, started = (running.bash(f"{before} {recipe} --print-config").stdout for before in ("", "unset NATS_URL;"))
    assert (tomllib.loads(joined)["embedded_nats"], tomllib.loads(started)["embedded_nats"]) == (False, True)


def test_the_metrics_are_those_that_a_worker_has(running: Checkout) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=10) as reply:
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
    quotes = [(block.kind, block.code) for block in blocks(PAGE) if block.kind in QUOTED]
    assert {kind for kind, _ in quotes} == set(QUOTED)
    for kind, quote in quotes:
        samples = [(REPOSITORY / "samples" / name).read_text("utf-8") for name in QUOTED[kind]]
        assert any(stands_in(quote, sample) for sample in samples), quote


def stands_in(quote: str, sample: str) -> bool:
    """Whether its lines do, in their order, with others between them or not, and indented or not."""
    lines = iter(line.strip() for line in sample.splitlines())
    return all(line.strip() in lines for line in quote.splitlines())


def test_the_settings_file_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLBUS_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "mlbus.toml"
    file.write_text(code_of("toml"))
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
    flags = {flag for parameter in typer.main.get_command(app).commands["serve"].real.params for flag in parameter.opts}
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


def test_the_roles_are_those_of_the_server() -> None:
    assert names_in("role") == {*ROLES, "local"}


def test_the_models_are_those_of_the_catalogue() -> None:
    told = [(code_in(row[0])[0], *row[1:4]) for row in table("id", "kind")]
    specs = {spec.id: spec for spec in load_catalogue()}
    assert sorted(told) == sorted(
        (spec.id, spec.kind, str(spec.dimensions or ""), spec.licence) for spec in specs.values()
    )
