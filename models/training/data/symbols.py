"""The symbols of a source file: functions, methods and classes with their docstrings, or blocks of lines."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, takewhile
from textwrap import dedent
from typing import Literal, TypeAlias

from tree_sitter import Node

from .blocks import blocks_of
from .definitions import Call, Definition, find_definitions
from .docstrings import comment_text, literal_text
from .file_kinds import is_test_file, is_test_symbol
from .languages import GRAMMARS, Grammar
from .records import SourceFile, Symbol
from .trees import match_patterns

Edit: TypeAlias = tuple[int, int, bytes]
"""A replacement: the first byte, the one after the last, the new text."""
_MAX_NAME_CHARS = 200
_TYPE_ARGUMENTS = re.compile(r"(?<=\w)(?<!operator)<.*>", re.S)
_MARGIN = re.compile(rb"[ \t]*")
_LINES_BEFORE, _LINES_AROUND, _MAX_LINES, _MAX_WIDTH = 2, 5, 12, 300
"""Of a call site: lines before the statement, around the call in a long one, in all; characters of a line."""


def symbols_of(file: SourceFile) -> list[Symbol]:
    """The functions, methods, classes and tests of a file in their order; blocks where its language has no grammar.

    A function inside a function belongs to that one. A class has its methods without their bodies. Never raises: what
    cannot be parsed is skipped, and a file without a definition that can be parsed is split into blocks.
    """
    source = file.text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace")
    file = SourceFile(file.path, file.language, source.decode())
    grammar = GRAMMARS.get(file.language)
    if grammar is None or (parsed := match_patterns(source, file.language)) is None:
        return blocks_of(file)
    tree, matches = parsed
    definitions, calls = find_definitions(matches, source, grammar)
    if not definitions and tree.root_node.has_error:
        return blocks_of(file)
    parsed_file = _ParsedFile(file, source, grammar, calls)
    return [parsed_file.symbol(each) for each in definitions if each.kind in ("function", "class", "test")]


class _ParsedFile:
    """Makes symbols of a file's definitions."""

    def __init__(self, file: SourceFile, source: bytes, grammar: Grammar, calls: Sequence[Call]) -> None:
        self._file = file
        self._source = source
        self._grammar = grammar
        self._calls = calls
        self._call_starts = [call.name.start_byte for call in calls]
        self._lines = file.text.split("\n")
        self._line_ends = list(accumulate(len(line) + 1 for line in source.split(b"\n")))
        self._in_test_file = is_test_file(file.path)

    def symbol(self, definition: Definition) -> Symbol:
        docstring, begin, cuts = self._documentation(definition)
        stubs = [edit for part in definition.parts for edit in self._stubs(part)] if definition.kind == "class" else []
        sites = self._call_sites(definition)
        names = _names(definition)
        qualified_name = ".".join(names)
        return Symbol(
            names[-1],
            qualified_name,
            _kind(definition, names),
            self._file.language,
            self._file.path,
            line=bisect_right(self._line_ends, begin) + 1,
            code=_excerpt(self._source, begin, definition.end, stubs),
            body=_excerpt(self._source, definition.start, definition.end, stubs + cuts),
            docstring=docstring,
            calls=tuple(sites),
            is_test=self._is_test(definition, qualified_name),
            call_sites=sites,
        )

    def _documentation(self, definition: Definition) -> tuple[str, int, list[Edit]]:
        """The docstring, the first byte of the code that includes it, and the edits that remove it from the body."""
        cuts = [self._cut(comment) for comment in definition.comments]
        if (literal := definition.docstring) is not None and (docstring := literal_text(_text(literal))):
            return docstring, definition.start, [*cuts, self._cut_literal(literal, definition.bodies[0])]
        comments = _last_comment(definition.comments, self._grammar.doc_signs)
        docstring = comment_text([_text(each) for each in comments])
        begin = min(comments[0].start_byte, definition.start) if docstring else definition.start
        return docstring, begin, cuts

    def _cut(self, node: Node) -> Edit:
        """Remove a node, and the white space and `;` behind it."""
        end = node.end_byte
        while end < len(self._source) and self._source[end] in b" \t\r\n\f;":
            end += 1
        return node.start_byte, end, b""

    def _cut_literal(self, literal: Node, body: Node) -> Edit:
        """Remove a docstring; a body that must not be empty gets a placeholder if nothing else is in it."""
        if self._grammar.placeholder and all(child.type == "comment" for child in body.named_children[1:]):
            return literal.start_byte, literal.end_byte, self._grammar.placeholder
        return self._cut(literal)

    def _stubs(self, part: Definition) -> list[Edit]:
        """Remove the comments of a definition inside a class, and replace its bodies by stubs."""
        edits = [self._cut(comment) for comment in part.comments]
        for body in part.bodies:
            first_bytes = self._source[body.start_byte : body.start_byte + 8]
            stub = next((stub for sign, stub in self._grammar.stubs if first_bytes.startswith(sign)), None)
            if stub is not None:
                edits.append((body.start_byte, body.end_byte, stub))
        return edits

    def _call_sites(self, definition: Definition) -> dict[str, str]:
        """The names called, in order, each with the statement around its first call and a line or two before it."""
        if definition.kind == "class" or not definition.bodies:
            return {}
        literal = definition.docstring
        first = definition.node.start_point[0] if literal is None else literal.end_point[0] + 1
        rows = range(first, definition.bodies[-1].end_point[0] + 1)
        sites: dict[str, str] = {}
        for body in definition.bodies:
            begin, end = (bisect_left(self._call_starts, at) for at in (body.start_byte, body.end_byte))
            for call in self._calls[begin:end]:
                if (name := _text(call.name)) not in sites:
                    shown = _shown_rows(call, rows)
                    lines = (line[:_MAX_WIDTH] for line in self._lines[shown.start : shown.stop])
                    # dedent, since the first line may be of a deeper block than the call
                    sites[name] = dedent("\n".join(lines)).strip("\n").rstrip()
        return sites

    def _is_test(self, definition: Definition, qualified_name: str) -> bool:
        if self._in_test_file or definition.kind == "test":
            return True
        end = definition.bodies[0].start_byte if definition.bodies else definition.end
        head = self._source[definition.start : end].decode("utf-8", "replace")
        return is_test_symbol(self._file.language, qualified_name, head)


def _last_comment(comments: Sequence[Node], signs: tuple[str, ...]) -> list[Node]:
    """The last comment that begins with one of the signs; a line comment with the line comments before it."""
    signed = [each for each in comments if _text(each).startswith(signs)]
    lines = list(takewhile(lambda each: not _text(each).startswith("/*"), reversed(signed)))
    return lines[::-1] or signed[-1:]


def _names(definition: Definition) -> list[str]:
    """The names of the enclosing definitions, then its own. `a::b` is two names."""
    around = [*(outer.name for outer in definition.scope), definition.receiver]
    names = [part for node in around if node is not None for part in _parts(_text(node))]
    if definition.kind == "test":
        text = _text(definition.name)[:_MAX_NAME_CHARS]
        return [*names, text.strip("\"'`()").replace(", ", ".") or text]
    return names + _parts(_text(definition.name))


def _parts(name: str) -> list[str]:
    """The parts of a name, without the arguments of a generic type."""
    name = name[:_MAX_NAME_CHARS]
    return [part.strip() for part in _TYPE_ARGUMENTS.sub("", name).split("::")]


def _kind(definition: Definition, names: Sequence[str]) -> Literal["function", "method", "class"]:
    if definition.kind == "class":
        return "class"
    in_class = bool(definition.scope) and definition.scope[-1].kind in ("class", "members")
    is_member = definition.receiver is not None or len(names) > len(definition.scope) + 1
    return "method" if in_class or is_member else "function"


def _shown_rows(call: Call, rows: range) -> range:
    """The rows of a call site, from 0, within the rows of its function."""
    row = call.name.start_point[0]
    first = max(rows.start, call.statement.start_point[0] - _LINES_BEFORE)
    last = min(rows.stop - 1, call.statement.end_point[0])
    if last - first >= _MAX_LINES:
        first, last = max(first, row - _LINES_AROUND), min(last, row + _LINES_AROUND)
    return range(min(first, row), max(last, row) + 1)


def _excerpt(source: bytes, start: int, end: int, edits: Iterable[Edit]) -> str:
    """The bytes from start to end, with edits that do not overlap, and without the first line's margin."""
    line = source.rfind(b"\n", 0, start) + 1
    indent = _MARGIN.fullmatch(source, line, start)
    pieces = [indent[0] if indent else b""]
    for first, last, text in sorted(edits):
        if start <= first and last <= end:
            pieces += [source[start:first], text]
            start = last
    pieces.append(source[start:end])
    lines = b"".join(pieces).decode("utf-8", "replace").split("\n")
    first_line = next((line for line in lines if line.strip()), "")
    margin = first_line[: len(first_line) - len(first_line.lstrip(" \t"))]
    return "\n".join(line.removeprefix(margin) for line in lines).strip("\n").rstrip()


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")
