"""Sources parsed with tree-sitter, and the patterns of queries/*.scm found in their trees.

Owns loading a grammar, and how much time and depth a file may take.
"""

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from time import thread_time
from typing import TypeAlias

from tree_sitter import Language, Node, Parser, Query, QueryCursor, Tree

from .languages import GRAMMARS

Match: TypeAlias = tuple[int, dict[str, list[Node]]]
"""The number of a pattern, and what each of its captures stands for."""

_QUERIES = Path(__file__).parent / "queries"
_TIME_LIMIT_S = 10
"""Of processor time, looked at between the parser's steps; a file of a megabyte takes about one second."""

_PIECE = 1 << 16
"""Bytes that the parser is handed at once."""

_ATTEMPTS = 8
_DEPTH = 1_000
"""Nodes inside each other; what is deeper is not looked at, which would take the square of the time."""


def match_patterns(source: bytes, language: str) -> tuple[Tree, list[Match]] | None:
    """The tree of a source in a language of GRAMMARS, and what the patterns find in it; None where that takes too long.

    Where an error swallows what follows it, the source is read once more without the line that the error begins at, and
    so on while that finds more definitions. The grammars try out all that a text may mean, which for some that mean
    nothing takes hours.
    """
    grammar, query = _load(language)
    end_s = thread_time() + _TIME_LIMIT_S
    best: tuple[Tree, list[Match]] | None = None
    for _ in range(_ATTEMPTS):
        if (tree := _parse(source, grammar, end_s)) is None:
            break
        cursor = QueryCursor(query)
        cursor.set_max_start_depth(_DEPTH)
        matches = cursor.matches(tree.root_node)
        if best is not None and _definitions(matches) <= _definitions(best[1]):
            break
        best = tree, matches
        if (error := _large_error(tree)) is None:
            break
        source = _without_line(source, error.start_byte)
    return best


def _parse(source: bytes, grammar: Language, end_s: float) -> Tree | None:
    """The tree of a source; None where it is not there by a time of the thread's clock."""
    try:
        return Parser(grammar).parse(
            lambda offset, _: source[offset : offset + _PIECE],
            progress_callback=lambda _offset, _has_error: thread_time() > end_s,
        )
    except ValueError:  # how the parser says that it was stopped
        return None


def _definitions(matches: Iterable[Match]) -> int:
    return sum("name" in captures for _, captures in matches)


def _large_error(tree: Tree) -> Node | None:
    """The first error that is more than a few lines long, the whole tree or right below its root."""
    nodes = (tree.root_node, *tree.root_node.children) if tree.root_node.has_error else ()
    return next((node for node in nodes if node.is_error and node.end_point[0] - node.start_point[0] > 3), None)


def _without_line(source: bytes, position: int) -> bytes:
    """The source with spaces in place of the line that a byte is in."""
    start, end = source.rfind(b"\n", 0, position) + 1, source.find(b"\n", position)
    end = len(source) if end < 0 else end
    return source[:start] + b" " * (end - start) + source[end:]


@cache
def _load(language: str) -> tuple[Language, Query]:
    grammar = GRAMMARS[language]
    loaded = Language(getattr(import_module(grammar.package), grammar.function)())
    patterns = "\n".join((_QUERIES / f"{name}.scm").read_text(encoding="utf-8") for name in grammar.queries)
    return loaded, Query(loaded, patterns)
