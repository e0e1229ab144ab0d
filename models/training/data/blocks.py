"""A file as blocks of lines, for a language without a grammar here and for text that no grammar can read."""

import re
from collections.abc import Iterator
from textwrap import dedent

from .docstrings import comment_text
from .records import SourceFile, Symbol
from .test_detection import is_test_file

_LEAST, _MOST = 10, 60
"""Lines of a block: one ends with the paragraph that reaches the least, and sooner before one that is documented."""
_COMMENT = re.compile(
    r"\s*(?:(?P<block>/\*.*?\*/)[^\n]*(?:\n|\Z)|(?P<lines>(?:[ \t]*(?://|#(?![!\[]|include|if|define|pragma)|--)[^\n]*(?:\n|\Z))+))",
    re.S,
)


def blocks_of(file: SourceFile) -> list[Symbol]:
    """The blocks of a file, each of whole paragraphs where these are short enough.

    A comment that a block begins with is its docstring. It is named for its file and its first line.
    """
    is_test = is_test_file(file.path)
    lines = file.text.split("\n")
    return [_block(file, begin, lines[begin:end], is_test) for begin, end in _grouped(lines)]


def _block(file: SourceFile, begin: int, lines: list[str], is_test: bool) -> Symbol:
    code = dedent("\n".join(lines)).strip("\n")
    comment = _COMMENT.match(code)
    body = dedent(code[comment.end() :]).strip("\n") if comment else ""
    docstring = ""
    if comment and body:
        docstring = comment_text([comment["block"]] if comment["block"] else comment["lines"].splitlines())
    name = f"{file.path}:{begin + 1}"
    return Symbol(
        name,
        name,
        "block",
        file.language,
        file.path,
        begin + 1,
        code,
        body if docstring else code,
        docstring,
        (),
        is_test,
    )


def _grouped(lines: list[str]) -> Iterator[tuple[int, int]]:
    """The first line of each block, from 0, and the one after its last."""
    begin = end = 0
    for start, stop in _paragraphs(lines):
        least = 3 if _COMMENT.match("\n".join(lines[start:stop])) else _LEAST
        if end > begin and (end - begin >= least or stop - begin > _MOST):
            yield begin, end
            begin = start
        elif end == begin:
            begin = start
        end = stop
    if end > begin:
        yield begin, end


def _paragraphs(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Runs of lines that are not empty; a long one is cut."""
    start = 0
    for number in range(len(lines) + 1):
        ends = number == len(lines) or not lines[number].strip()
        if number > start and (ends or number - start == _MOST):
            yield start, number
            start = number
        if ends:
            start = number + 1
