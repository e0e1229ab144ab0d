"""The text tiny_coder learns from: the sources of Python's standard library. Knows neither tokens nor a model."""

import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data", "html/entities.py", "site-packages"}
)
"""Tests, a library with copies of other modules, tables, generated prose, and what is not part of Python."""
HELD_OUT_PERCENT = 3


@dataclass(frozen=True, slots=True)
class Source:
    """One file. path: below the library's folder, with slashes."""

    path: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether it is kept for measuring: a matter of its path alone, so that no run can train on it."""
        return int(sha256(self.path.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def read_sources(root: Path | None = None) -> list[Source]:
    """Read the library's modules in the order of their paths, each text once, and no file that is not UTF-8.

    root: the library's folder; this interpreter's own if not given.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    found: dict[str, Source] = {}
    folders = [folder for folder in root.iterdir() if folder.name not in LEFT_OUT]
    for file in sorted(chain(root.glob("*.py"), *(folder.rglob("*.py") for folder in folders))):
        path = file.relative_to(root).as_posix()
        if _is_wanted(path) and (text := _decoded(file.read_bytes())):
            found.setdefault(text, Source(path, text))
    return list(found.values())


def split(sources: Iterable[Source]) -> tuple[Sequence[Source], Sequence[Source]]:
    """Part what is trained on from what is held out."""
    everything = list(sources)
    return [s for s in everything if not s.held_out], [s for s in everything if s.held_out]


def _is_wanted(path: str) -> bool:
    built = path.startswith(("_sysconfigdata", "config-"))
    return not built and path not in LEFT_OUT and LEFT_OUT.isdisjoint(path.split("/"))


def _decoded(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return ""
