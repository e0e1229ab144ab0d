"""The blocks of a Markdown page, run as written in a folder that looks like the repository after `make run`.

`<!-- not run: why -->` before a block exempts it. The ```text block after it shows what it prints, on standard output
and standard error: `…` stands for anything, alone on a line for any lines, numbers with a point are equal within 0.01,
and empty lines do not count.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from nats_server import REPOSITORY
from workers import clean_environment, worker_process

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<exempt>[^\n]+) -->\n)?(?P<fence>`{3,})(?P<kind>\w+)\n(?P<code>.*?)^(?P=fence)\n",
    re.M | re.S,
)
OTHER_COMMANDS = "other commands than nats req"
"""Why a block is exempt where tests/support/nats_stand_in.py is the nats command."""

STAND_IN = f"{sys.executable} {Path(__file__).with_name('nats_stand_in.py')}"
ADDRESS = "nats://127.0.0.1:4222"
HTTP_ADDRESS = "http://127.0.0.1:8080"
ANY_LINES = "…"
MISHAP = re.compile(r'\{"error":|^error \d{3}: |Unexpected NATS error|No responders are available', re.M)
"""What the nats command prints and ends with 0 all the same."""

NATS = """#!/usr/bin/env bash
# The nats command, but silence is a failure: it prints nothing, and ends with 0, where no reply comes in time.
printed=$({command} "$@" 2>&1) && code=0 || code=$?
echo "${{printed:?nothing came of: nats $*}}"
exit $code
"""


@dataclass(frozen=True)
class Block:
    """A block, and what it prints; None where the page does not show it. exempt: why it does not run."""

    page: str
    line: int
    kind: str
    code: str
    exempt: str | None
    shown: str | None

    def __str__(self) -> str:
        return f"{self.page} line {self.line}"


def blocks(page: Path) -> list[Block]:
    """All blocks of the page that have a kind."""
    text = page.read_text("utf-8")
    found = list(BLOCK.finditer(text))
    name = str(page.relative_to(REPOSITORY))
    return [
        Block(
            name,
            text[: block.start()].count("\n") + 1,
            block["kind"],
            block["code"],
            block["exempt"],
            following["code"] if following and following["kind"] == "text" else None,
        )
        for block, following in zip_longest(found, found[1:])
    ]


@dataclass(frozen=True)
class Checkout:
    """A folder like the repository while `make run` runs."""

    folder: Path
    url: str
    http_url: str
    metrics_port: int

    def run(self, block: Block) -> None:
        """Run it, and hold what it prints against what is shown. Raises AssertionError."""
        code = self._here(block.code)
        done = self._run(sys.executable, "-c", code) if block.kind == "python" else self.bash(code)
        assert done.returncode == 0, done.stdout
        shown = self._here(block.shown or "")
        assert MISHAP.search(shown) or not MISHAP.search(done.stdout), done.stdout
        assert block.shown is None or is_as_shown(lines_of(shown), lines_of(done.stdout)), (
            f"shown:\n{shown}\nprinted:\n{done.stdout}"
        )

    def _here(self, text: str) -> str:
        return text.replace(ADDRESS, self.url).replace(HTTP_ADDRESS, self.http_url)

    def bash(self, code: str) -> subprocess.CompletedProcess[str]:
        """Run it until a command of it fails; standard error goes with standard output."""
        return self._run("bash", "-e", "-o", "pipefail", "-c", code)

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            command,
            cwd=self.folder,
            env=clean_environment(NATS_URL=self.url, PATH=path, XDG_CONFIG_HOME=str(self.folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )


@contextmanager
def checkout(folder: Path, nats_command: str, converted: Path | None = None) -> Iterator[Checkout]:
    """The folder, and in it a worker with an embedded server; nats_command: what the blocks find as `nats`.

    converted: the folder of converted models, where there is one already.
    """
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "subjects").symlink_to(REPOSITORY / "subjects")
    install_nats(folder, nats_command)
    if converted:
        (folder / "var" / "cache").mkdir(parents=True)
        (folder / "var" / "cache" / "gguf").symlink_to(converted)
    ports = ("--nats-port", "0", "--metrics-port", "0", "--gateway", "--listen", "127.0.0.1:0")
    alone = ("--threads", "1")  # several that share busy cores wait for each other at every product
    command = [folder / ".venv" / "bin" / "mlbus", "serve", "--embedded-nats", *ports, *alone]
    with worker_process(command, folder, clean_environment()) as events:
        ready = events["worker.ready"]
        yield Checkout(folder, events["nats_server.started"]["url"], ready["gateway"], ready["metrics_port"])


def install_nats(folder: Path, command: str) -> None:
    """Make it what the blocks find as `nats`."""
    nats = folder / "bin" / "nats"
    nats.parent.mkdir()
    nats.write_text(NATS.format(command=command))
    nats.chmod(0o755)


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def is_as_shown(shown: list[str], printed: list[str]) -> bool:
    if not shown or not printed:
        return not shown and not printed
    if shown[0] == ANY_LINES:
        return any(is_as_shown(shown[1:], printed[count:]) for count in range(1, len(printed) + 1))
    return line_is_as_shown(shown[0], printed[0]) and is_as_shown(shown[1:], printed[1:])


def line_is_as_shown(shown: str, printed: str) -> bool:
    if _matches(shown, printed):
        return True
    pairs = list(zip(shown.split(), printed.split(), strict=False))
    return len(shown.split()) == len(printed.split()) and all(_is_alike(*pair) for pair in pairs)


def _is_alike(shown: str, printed: str) -> bool:
    number = re.compile(r"-?\d+\.\d+")
    if number.fullmatch(shown) and number.fullmatch(printed):
        return abs(float(shown) - float(printed)) <= 0.01
    return _matches(shown, printed)


def _matches(shown: str, printed: str) -> bool:
    return re.fullmatch(re.escape(shown).replace("…", ".*"), printed) is not None
