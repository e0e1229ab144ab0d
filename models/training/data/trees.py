"""Parse sources with tree-sitter and match the patterns of queries/*.scm, within limits of time, memory and depth."""

import zlib
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from time import thread_time
from typing import TypeAlias

from tree_sitter import Language, Node, Parser, Query, QueryCursor, Tree

from ...sandbox.limits import resident_bytes
from .languages import GRAMMARS

Match: TypeAlias = tuple[int, dict[str, list[Node]]]
"""The number of a pattern, and the nodes of each of its captures."""

_QUERIES = Path(__file__).parent / "queries"
_TIME_LIMIT_S = 5
"""Processor time, checked between the parser's steps; a file of a megabyte takes about one second."""

_MEMORY_LIMIT = 512 << 20
"""Bytes; with some syntax errors the parser's memory grows with the square of the text."""

_ALWAYS_PARSED_BYTES, _MAX_COMPRESSION = 2_048, 50
"""The size up to which, and the compression ratio up to which, a text is parsed."""

_PIECE = 1 << 16
"""Bytes that the parser reads at once."""

_ATTEMPTS = 8
"""How often a file with errors is parsed."""

_SMALL_ERROR_LINES = 3
"""An error of up to these many lines is ignored."""

_MAX_DEPTH = 1_000
"""Of nested nodes; deeper ones are not matched, since that would take quadratic time."""


def match_patterns(source: bytes, language: str) -> tuple[Tree, list[Match]] | None:
    """The tree of a source in a language of GRAMMARS, and the patterns' matches; None if that exceeds the limits.

    If an error includes what follows it, the source is parsed again without the line where it begins, as long as that
    finds more definitions.
    """
    if _is_monotonous(source):
        return None
    grammar, query = _load(language)
    end_s = thread_time() + _TIME_LIMIT_S
    best: tuple[Tree, list[Match]] | None = None
    for _ in range(_ATTEMPTS):
        if (tree := _parse(source, grammar, end_s)) is None:
            break
        cursor = QueryCursor(query)
        cursor.set_max_start_depth(_MAX_DEPTH)
        matches = cursor.matches(tree.root_node)
        if best is not None and _definitions(matches) <= _definitions(best[1]):
            break
        best = tree, matches
        if (broken := _broken(tree)) is None:
            break
        source = _without_line(source, broken.start_byte)
    return best


def _is_monotonous(source: bytes) -> bool:
    """Whether a text repeats itself too often to be code.

    At its end some grammars try all interpretations in a single step, which takes hours or all memory and cannot be
    interrupted.
    """
    return len(source) > _ALWAYS_PARSED_BYTES and len(zlib.compress(source, level=1)) * _MAX_COMPRESSION < len(source)


def _parse(source: bytes, grammar: Language, end_s: float) -> Tree | None:
    """The tree of a source; None if that takes too much memory, or longer than until a time of the thread's clock."""
    max_bytes = resident_bytes() + _MEMORY_LIMIT

    def must_stop(_: int, has_error: bool) -> bool:
        return thread_time() > end_s or (has_error and resident_bytes() > max_bytes)

    try:
        return Parser(grammar).parse(lambda offset, _: source[offset : offset + _PIECE], progress_callback=must_stop)
    except ValueError:  # the parser was stopped
        return None


def _definitions(matches: Iterable[Match]) -> int:
    return sum("name" in captures for _, captures in matches)


def _broken(tree: Tree) -> Node | None:
    """The first node below the root, or the root itself, with an error of more than a few lines."""
    tops = [tree.root_node] if tree.root_node.is_error else tree.root_node.children
    return next((top for top in tops if _has_large_error(top)), None)


def _has_large_error(top: Node) -> bool:
    nodes = [top]
    while nodes:
        node = nodes.pop()
        if node.has_error and node.end_point[0] - node.start_point[0] > _SMALL_ERROR_LINES:
            if node.is_error:
                return True
            nodes += node.children
    return False


def _without_line(source: bytes, position: int) -> bytes:
    """The source with the line of a byte replaced by spaces."""
    start, end = source.rfind(b"\n", 0, position) + 1, source.find(b"\n", position)
    end = len(source) if end < 0 else end
    return source[:start] + b" " * (end - start) + source[end:]


@cache
def _load(language: str) -> tuple[Language, Query]:
    grammar = GRAMMARS[language]
    loaded = Language(getattr(import_module(grammar.package), grammar.function)())
    patterns = "\n".join((_QUERIES / f"{name}.scm").read_text(encoding="utf-8") for name in grammar.queries)
    return loaded, Query(loaded, patterns)
