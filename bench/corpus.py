"""The texts of every measurement: functions of the standard library, the same ones for every contender.

Knows no model and no tokeniser; lengths are bounded in characters, which gives about 70 tokens on average.
"""

import ast
import hashlib
import random
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
_MIN_CHARS, _MAX_CHARS = 40, 600


def functions(count: int, seed: int = 0) -> list[str]:
    """`count` different functions in random order, which is the order they are sent in.

    Raises ValueError if the standard library has fewer.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = {source: None for path in _modules(root) for source in _functions_of(path)}
    return random.Random(seed).sample(list(found), count)


def digest(texts: list[str]) -> str:
    """A short name for exactly these texts: the standard library differs between patch releases."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def _modules(root: Path) -> Iterator[Path]:
    return (p for p in sorted(root.rglob("*.py")) if not _SKIPPED & set(p.relative_to(root).parts))


def _functions_of(path: Path) -> Iterator[str]:
    try:
        source = path.read_text("utf-8")
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            if _MIN_CHARS <= len(text) <= _MAX_CHARS:
                yield text
