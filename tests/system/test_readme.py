"""README and the pages of docs/, run as written against a worker with the real model, and held against the code.

How its blocks run is in readme_blocks.py. The nats command is a stand-in here; samples/test_nats_lines.py runs itself.
"""

import os
import re
import subprocess
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_model import converted_folder
from nats_server import REPOSITORY
from readme_blocks import STAND_IN, Block, Checkout, blocks, checkout

from models.catalogue import load_catalogue
from service.bus.credentials import ROLES
from service.bus.settings import _VARIABLES
from service.settings import read_settings
from subjects import names
from tools.reference.pages import documents, refreshed

README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
PAGES = [README, *documents()]
BLOCKS = [block for page in PAGES for block in blocks(page)]
OUTSIDE_THE_SITE = [
    README,
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "samples/README.md",
]
"""Pages whose links `make docs` does not check."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with checkout(tmp_path_factory.mktemp("mlbus"), STAND_IN, converted_folder().parent) as made:
        yield made


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.kind in ("sh", "python") and not block.exempt], ids=str
)
def test_blocks_do_what_they_say(running: Checkout, block: Block) -> None:
    running.run(block)


def code_of(kind: str) -> str:
    """The only block of that kind."""
    (block,) = (block for block in BLOCKS if block.kind == kind)
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
    assert names_in("reference/metrics.md", "metric") == {kind for kind in kinds if not kind.endswith("_created")}


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
    quotes = [(block.kind, block.code) for block in BLOCKS if block.kind in QUOTED]
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


@pytest.mark.parametrize("page", OUTSIDE_THE_SITE, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text("utf-8")):
        target = page.parent / link if link else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Of the page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_paths_that_are_named_exist() -> None:
    named = {
        (page.name, path)
        for page in {*PAGES, *OUTSIDE_THE_SITE} - {DOCS / "benchmarks.md"}  # of the past
        for path in re.findall(
            r"`((?:models|service|subjects|tests|bench|tools|samples)/[\w/.-]*)`", page.read_text("utf-8")
        )
    }
    assert len(named) > 30
    assert [one for one in sorted(named) if not (REPOSITORY / one[1]).exists()] == []


def test_the_generated_parts_are_current() -> None:
    stale = [str(page) for page in PAGES if refreshed(page.read_text("utf-8")) != page.read_text("utf-8")]
    assert not stale, "run: make reference"


# Tables


def table(page: Path, *heading: str) -> list[list[str]]:
    """The cells of the rows below the heading that begins so."""
    text = page.read_text("utf-8")
    start = re.search(rf"^\| {re.escape(' | '.join(heading))} \|.*\n\|[-| ]+\|\n", text, re.M)
    assert start, f"no table {heading}"
    rows = text[start.end() :].partition("\n\n")[0].splitlines()
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def code_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]*)`", cell)


def names_in(page: str, *heading: str) -> set[str]:
    """What stands as code in the first column of a table of that page of docs/."""
    return {name for row in table(DOCS / page, *heading) for name in code_in(row[0])}


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
    assert {subject.removesuffix(".<request id>") for subject in names_in("../README.md", "subject")} == subjects
    assert names_in("reference/protocol.md", "Content-Type") == types
    assert names_in("reference/protocol.md", "header") == known - subjects - types


def test_the_server_is_found_through_the_variables_named() -> None:
    assert names_in("reference/settings.md", "variable") == {*_VARIABLES, "NATS_CONTEXT"}


def test_the_roles_are_those_of_the_server() -> None:
    assert names_in("operations.md", "role") == {*ROLES, "local"}


def test_the_models_are_those_of_the_catalogue() -> None:
    told = [(code_in(row[0])[0], *row[1:4]) for row in table(README, "id", "kind")]
    specs = {spec.id: spec for spec in load_catalogue()}
    assert sorted(told) == sorted(
        (spec.id, spec.kind, str(spec.dimensions or ""), spec.licence) for spec in specs.values()
    )
