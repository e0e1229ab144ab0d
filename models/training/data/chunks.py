"""A source file split into symbols: functions, methods and classes with their docstrings, or blocks of lines.

Owns what a symbol's name, code, body and docstring are; where it stands in the file is found by definitions.py.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import Literal

from tree_sitter import Node

from .blocks import blocks_of
from .calls import call_sites
from .definitions import Call, Definition, find_definitions
from .docstrings import comment_text, literal_text
from .languages import GRAMMARS, Grammar
from .layout import Edit, after_space, excerpt
from .records import SourceFile, Symbol
from .test_detection import is_test_file, is_test_symbol
from .trees import match_patterns

_LONGEST_NAME = 200
_TYPE_ARGUMENTS = re.compile(r"(?<=\w)(?<!operator)<.*>", re.S)


def symbols_of(file: SourceFile) -> list[Symbol]:
    """The functions, methods, classes and tests of a file in their order; blocks where its language has no grammar.

    A function inside a function is part of that one. A class has its methods without their bodies. Never raises,
    whatever the text is: what cannot be parsed is passed over, and a file of which nothing can be is split into blocks.
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
    reading = _Reading(file, source, grammar, calls)
    return [reading.symbol(each) for each in definitions if each.kind in ("function", "class", "test")]


class _Reading:
    """A file that was parsed, of which symbols are made."""

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
        """The symbol that a definition is."""
        docstring, begin, cuts = self._documentation(definition)
        stubs = [edit for part in definition.parts for edit in self._stubs(part)] if definition.kind == "class" else []
        sites = self._call_sites(definition)
        names = _names(definition)
        qualified = ".".join(names)
        return Symbol(
            names[-1],
            qualified,
            _kind(definition, names),
            self._file.language,
            self._file.path,
            line=bisect_right(self._line_ends, begin) + 1,
            code=excerpt(self._source, begin, definition.end, stubs),
            body=excerpt(self._source, definition.start, definition.end, stubs + cuts),
            docstring=docstring,
            calls=tuple(sites),
            is_test=self._is_test(definition, qualified),
            call_sites=sites,
        )

    def _documentation(self, definition: Definition) -> tuple[str, int, list[Edit]]:
        """The docstring, the byte where the code with it begins, and what to cut from that for the body."""
        cuts = [self._cut(comment) for comment in definition.comments]
        if (literal := definition.docstring) is not None and (docstring := literal_text(_text(literal))):
            return docstring, definition.start, [*cuts, self._cut_literal(literal, definition.bodies[0])]
        comments = _last_comment(definition.comments, self._grammar.doc_signs)
        docstring = comment_text([_text(each) for each in comments])
        begin = min(comments[0].start_byte, definition.start) if docstring else definition.start
        return docstring, begin, cuts

    def _cut(self, node: Node) -> Edit:
        """Leave out a node and the space behind it."""
        return node.start_byte, after_space(self._source, node.end_byte), b""

    def _cut_literal(self, literal: Node, body: Node) -> Edit:
        """Leave out a docstring; where nothing else is in a body that must not be empty, something stands for it."""
        if self._grammar.empty and all(child.type == "comment" for child in body.named_children[1:]):
            return literal.start_byte, literal.end_byte, self._grammar.empty
        return self._cut(literal)

    def _stubs(self, part: Definition) -> list[Edit]:
        """Leave out the bodies and the comments of what is inside a class."""
        edits = [self._cut(comment) for comment in part.comments]
        for body in part.bodies:
            begins = self._source[body.start_byte : body.start_byte + 8]
            stub = next((stub for sign, stub in self._grammar.stubs if begins.startswith(sign)), None)
            if stub is not None:
                edits.append((body.start_byte, body.end_byte, stub))
        return edits

    def _call_sites(self, definition: Definition) -> dict[str, str]:
        if definition.kind == "class" or not definition.bodies:
            return {}
        calls: list[Call] = []
        for body in definition.bodies:
            first, last = (bisect_left(self._call_starts, end) for end in (body.start_byte, body.end_byte))
            calls += self._calls[first:last]
        literal = definition.docstring
        first = definition.node.start_point[0] if literal is None else literal.end_point[0] + 1
        return call_sites(calls, range(first, definition.bodies[-1].end_point[0] + 1), self._lines)

    def _is_test(self, definition: Definition, qualified: str) -> bool:
        if self._in_test_file or definition.kind == "test":
            return True
        end = definition.bodies[0].start_byte if definition.bodies else definition.end
        head = self._source[definition.start : end].decode("utf-8", "replace")
        return is_test_symbol(self._file.language, qualified, head)


def _last_comment(comments: Sequence[Node], signs: tuple[str, ...]) -> list[Node]:
    """The last comment that begins with one of the signs; if it is one of a line, those before it belong to it."""
    signed = [each for each in comments if _text(each).startswith(signs)]
    lines = list(takewhile(lambda each: not _text(each).startswith("/*"), reversed(signed)))
    return lines[::-1] or signed[-1:]


def _names(definition: Definition) -> list[str]:
    """The names of what a definition belongs to, and its own at the end. `a::b` are two."""
    around = [*(outer.name for outer in definition.scope), definition.receiver]
    names = [part for node in around if node is not None for part in _parts(_text(node))]
    if definition.kind == "test":
        text = _text(definition.name)[:_LONGEST_NAME]
        return [*names, text.strip("\"'`()").replace(", ", ".") or text]
    return names + _parts(_text(definition.name))


def _parts(name: str) -> list[str]:
    """The parts of a name, without the arguments of a generic type."""
    name = name[:_LONGEST_NAME]
    return [part.strip() for part in _TYPE_ARGUMENTS.sub("", name).split("::")]


def _kind(definition: Definition, names: Sequence[str]) -> Literal["function", "method", "class"]:
    if definition.kind == "class":
        return "class"
    in_class = bool(definition.scope) and definition.scope[-1].kind in ("class", "members")
    is_member = definition.receiver is not None or len(names) > len(definition.scope) + 1
    return "method" if in_class or is_member else "function"


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")
