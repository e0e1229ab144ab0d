"""Sources parsed with tree-sitter, and the patterns of queries/*.scm found in their trees.

Owns loading a grammar, and how much time, memory and depth a file may take.
"""

import resource
import zlib
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
_TIME_LIMIT_S = 5
"""Of processor time, looked at between the parser's steps; a file of a megabyte takes about one second."""

_MEMORY_LIMIT = 512 << 20
"""Bytes; with some errors the parser's memory grows with the square of the text."""

_SHORT, _REPEATED = 2_048, 50
"""Bytes that are never too many; how much smaller than a text its compressed form is where it repeats itself."""

_PIECE = 1 << 16
"""Bytes that the parser is handed at once."""

_ATTEMPTS = 8
"""How often a file with errors is read."""

_FEW_LINES = 3
"""What an error may take up without being looked into."""

_DEPTH = 1_000
"""Nodes inside each other; what is deeper is not looked at, which would take the square of the time."""


def match_patterns(source: bytes, language: str) -> tuple[Tree, list[Match]] | None:
    """The tree of a source in a language of GRAMMARS, and what the patterns find in it; None where that takes too much.

    Where an error swallows what follows it, the source is read once more without the line that this begins at, and so
    on while that finds more definitions.
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
        cursor.set_max_start_depth(_DEPTH)
        matches = cursor.matches(tree.root_node)
        if best is not None and _definitions(matches) <= _definitions(best[1]):
            break
        best = tree, matches
        if (broken := _broken(tree)) is None:
            break
        source = _without_line(source, broken.start_byte)
    return best


def _is_monotonous(source: bytes) -> bool:
    """Whether it is one thing over and over, as nobody writes code.

    At the end of such a text the grammars may try out all that it can mean, for hours or until the memory is full, and
    in a single step, which nothing can stop.
    """
    return len(source) > _SHORT and len(zlib.compress(source, level=1)) * _REPEATED < len(source)


def _parse(source: bytes, grammar: Language, end_s: float) -> Tree | None:
    """The tree of a source; None where it is not there by a time of the thread's clock, or takes too much memory."""
    most_bytes = _resident_bytes() + _MEMORY_LIMIT

    def must_stop(_: int, has_error: bool) -> bool:
        return thread_time() > end_s or (has_error and _resident_bytes() > most_bytes)

    try:
        return Parser(grammar).parse(lambda offset, _: source[offset : offset + _PIECE], progress_callback=must_stop)
    except ValueError:  # how the parser says that it was stopped
        return None


def _resident_bytes() -> int:
    """The memory that this process has; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _definitions(matches: Iterable[Match]) -> int:
    return sum("name" in captures for _, captures in matches)


def _broken(tree: Tree) -> Node | None:
    """The first node below the root, or the root itself, with an error in it that swallows more than a few lines."""
    tops = [tree.root_node] if tree.root_node.is_error else tree.root_node.children
    return next((top for top in tops if _has_large_error(top)), None)


def _has_large_error(top: Node) -> bool:
    nodes = [top]
    while nodes:
        node = nodes.pop()
        if node.has_error and node.end_point[0] - node.start_point[0] > _FEW_LINES:
            if node.is_error:
                return True
            nodes += node.children
    return False


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
