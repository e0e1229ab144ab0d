"""A file as blocks of lines, for languages without a grammar and files that cannot be parsed."""

import re
from collections.abc import Iterator
from textwrap import dedent

from .docstrings import comment_text
from .file_kinds import is_test_file
from .records import SourceFile, Symbol

_MIN_LINES, _MAX_LINES, _MIN_LINES_BEFORE_COMMENT = 10, 60, 3
"""Lines of a block. It ends after the paragraph that reaches the minimum, which is lower before a commented one."""
_COMMENT = re.compile(
    r"\s*(?:(?P<block>/\*.*?\*/)[^\n]*(?:\n|\Z)|(?P<lines>(?:[ \t]*(?://|#(?![!\[]|include|if|define|pragma)|--)[^\n]*(?:\n|\Z))+))",
    re.S,
)


def blocks_of(file: SourceFile) -> list[Symbol]:
    """The blocks of a file, each of whole paragraphs if these are short enough.

    A comment at the beginning of a block is its docstring. Its name is its file and its first line.
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
    body = body if docstring else code
    return Symbol(name, name, "block", file.language, file.path, begin + 1, code, body, docstring, (), is_test)


def _grouped(lines: list[str]) -> Iterator[tuple[int, int]]:
    """The first line of each block, from 0, and the line after its last."""
    begin = end = 0
    for start, stop in _paragraphs(lines):
        is_commented = _COMMENT.match("\n".join(lines[start:stop])) is not None
        enough = _MIN_LINES_BEFORE_COMMENT if is_commented else _MIN_LINES
        if end > begin and (end - begin >= enough or stop - begin > _MAX_LINES):
            yield begin, end
            begin = start
        elif end == begin:
            begin = start
        end = stop
    if end > begin:
        yield begin, end


def _paragraphs(lines: list[str]) -> Iterator[tuple[int, int]]:
    """Runs of non-empty lines; a long one is split."""
    start = 0
    for number in range(len(lines) + 1):
        ends = number == len(lines) or not lines[number].strip()
        if number > start and (ends or number - start == _MAX_LINES):
            yield start, number
            start = number
        if ends:
            start = number + 1
