"""Sources parsed with tree-sitter, and the patterns of queries/*.scm found in their trees.

Owns loading a grammar, and the time that a file may take: no text can hold up what waits for it.
"""

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
"""Of processor time; a file of a megabyte takes about one second."""

_PIECE = 1 << 16
"""Bytes that the parser is handed at once."""

_DEPTH = 1_000
"""Nodes inside each other; what is deeper is not looked at, which would take the square of the time."""


def match_patterns(source: bytes, language: str) -> tuple[Tree, list[Match]] | None:
    """The tree of a source in a language of GRAMMARS, and what the patterns find in it; None where that takes too long.

    The grammars try out all that a text may mean, which for some that mean nothing takes hours.
    """
    grammar, query = _load(language)
    end_s = thread_time() + _TIME_LIMIT_S

    def is_late(*_: int) -> bool:
        return thread_time() > end_s

    try:
        tree = Parser(grammar).parse(lambda offset, _: source[offset : offset + _PIECE], progress_callback=is_late)
    except ValueError:  # how the parser says that it was stopped
        return None
    cursor = QueryCursor(query)
    cursor.set_max_start_depth(_DEPTH)
    return tree, cursor.matches(tree.root_node)


@cache
def _load(language: str) -> tuple[Language, Query]:
    grammar = GRAMMARS[language]
    loaded = Language(getattr(import_module(grammar.package), grammar.function)())
    patterns = "\n".join((_QUERIES / f"{name}.scm").read_text(encoding="utf-8") for name in grammar.queries)
    return loaded, Query(loaded, patterns)
