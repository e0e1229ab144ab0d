"""Each block of README and docs that types the nats command, run with the command itself: it prints what is shown.

And the stand-in that the other tests run such blocks with prints the same.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from nats_server import REPOSITORY
from readme_blocks import OTHER_COMMANDS, STAND_IN, Block, Checkout, blocks, checkout

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
NATS_LINE = re.compile(r"^(\w+=\S* )*nats ", re.M)
TYPED = [
    block
    for page in PAGES
    for block in blocks(page)
    if block.kind == "sh" and NATS_LINE.search(block.code) and block.exempt in (None, OTHER_COMMANDS)
]


TWO_TEXTS = '{"texts": ["def a(): pass", "def b(): pass"], "dimensions": 2}'
GREEDY = '{"prompt": "def a():", "model": "tiny_coder", "max_tokens": 1, "temperature": 0}'
ALIKE = [
    "req ml.embed hello --raw",
    "req ml.embed hello",
    "req ml.embed '{'",
    "req ml.emebd hello --timeout 500ms",
    "req ml.models.list '' --replies 0 --timeout 500ms --raw",
    f"req ml.embed.batch '{TWO_TEXTS}' -H Ml-Stream:true --wait-for-empty",
    f"req ml.embed.batch '{TWO_TEXTS}' -H Ml-Stream:true --replies 2 --raw",
    f"req ml.generate '{GREEDY}' -H Accept:text/plain --raw --timeout 60s",
    f"req ml.generate '{GREEDY}' -H Accept:text/plain -H Ml-Stream:true --wait-for-empty --raw --timeout 60s",
    "--context mlbus-admin req nobody.there hello",
]


@pytest.fixture(scope="module")
def nats_command() -> str:
    command = shutil.which("nats")
    assert command, "no nats command on PATH: go install github.com/nats-io/natscli/nats@v0.5.0"
    return command


@pytest.fixture(scope="module")
def running(nats_command: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    with checkout(tmp_path_factory.mktemp("mlbus"), nats_command) as made:
        yield made


@pytest.mark.parametrize("block", TYPED, ids=str)
def test_the_nats_command_prints_what_is_shown(running: Checkout, block: Block) -> None:
    running.run(block)


@pytest.mark.parametrize("line", ALIKE)
def test_the_stand_in_prints_the_same(running: Checkout, nats_command: str, line: str) -> None:
    context = ".venv/bin/mlbus admin context admin > log; "
    theirs, ours = (running.bash(context + f"{command} {line} 2> log; cat log") for command in (nats_command, STAND_IN))
    assert in_kind(ours) == in_kind(theirs)


def in_kind(printed: subprocess.CompletedProcess[str]) -> tuple[int, list[str]]:
    """Exit code and lines, without what differs from run to run: times, ids, the order of headers."""
    differing = r"^\d\d:\d\d:\d\d |(?<=rtt )\S+|[0-9a-f]{32}|-?\d+\.\d+(e-\d+)?"
    lines = re.sub(differing, "", printed.stdout, flags=re.M).splitlines()
    return printed.returncode, sorted(lines)
