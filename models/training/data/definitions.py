"""The definitions in a parsed file (functions, methods, classes, tests), their documentation, and the calls.

Captures of queries/*.scm: @function, @class, @test (a symbol); @members, @module (only qualifies the names in it); in
each of these @name, @body, @receiver. @outer wraps @inner and belongs to it; @attribute and @comment belong to what
follows them without a blank line. @docstring documents the body or block that is @documented. @call: a name that is
called; @statement: the statement around it.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from tree_sitter import Node

from .languages import Grammar
from .trees import Match

Kind: TypeAlias = Literal["function", "class", "test", "members", "module"]
Span: TypeAlias = tuple[int, int]
"""First byte, and the one after the last."""

_MAX_DEPTH = 32
"""Of nested definitions; deeper ones count as part of the enclosing one."""
_KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(slots=True)
class Definition:
    """One definition. start, end: bytes, including what wraps it and the attributes before it.

    name: as written; receiver: the class that its head names. bodies: one for each clause. comments: directly before
    it. scope: the enclosing definitions, outermost first. parts: the definitions directly inside.
    """

    kind: Kind
    node: Node
    name: Node
    receiver: Node | None
    bodies: list[Node]
    start: int
    end: int
    comments: list[Node] = field(default_factory=list)
    docstring: Node | None = None
    scope: tuple["Definition", ...] = ()
    parts: list["Definition"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Call:
    """A call. name: the last part of the name called; statement: the smallest one around it."""

    name: Node
    statement: Node


@dataclass(slots=True)
class _Matches:
    """The matches of the patterns, by spans of nodes. ranks: of the definitions' matches; the lowest counts.

    before: by its last row, the comment (True) or attribute that begins its line.
    """

    definitions: dict[Span, Definition] = field(default_factory=dict)
    ranks: dict[Span, tuple[int, int]] = field(default_factory=dict)
    wraps: dict[Span, Node] = field(default_factory=dict)
    before: dict[int, tuple[Node, bool]] = field(default_factory=dict)
    docstrings: dict[Span, Node] = field(default_factory=dict)
    calls: list[Node] = field(default_factory=list)
    statements: list[Node] = field(default_factory=list)


def find_definitions(matches: Iterable[Match], source: bytes, grammar: Grammar) -> tuple[list[Definition], list[Call]]:
    """The definitions of a file, except those inside functions, and all its calls; both in order.

    matches: of the patterns of its language.
    """
    found = _find(matches, source)
    for definition in found.definitions.values():
        _extend(definition, found, source)
    nested = list(_nest(found.definitions.values()))
    return _join_clauses(nested) if grammar.clauses else nested, list(_calls(found.calls, found.statements))


def _find(matches: Iterable[Match], source: bytes) -> _Matches:
    found = _Matches()
    for pattern, captures in matches:
        if "statement" in captures:
            found.statements += captures["statement"]
        elif "call" in captures:
            found.calls += captures["call"]
        elif "outer" in captures:
            found.wraps[_span(captures["inner"][0])] = captures["outer"][0]
        elif "docstring" in captures:
            found.docstrings[_span(captures["documented"][0])] = captures["docstring"][0]
        elif "comment" in captures or "attribute" in captures:
            is_comment = "comment" in captures
            node = captures["comment" if is_comment else "attribute"][0]
            if not source[source.rfind(b"\n", 0, node.start_byte) + 1 : node.start_byte].strip():
                found.before[_last_row(node)] = (node, is_comment)
        else:
            _add_definition(found, pattern, captures)
    return found


def _add_definition(found: _Matches, pattern: int, captures: dict[str, list[Node]]) -> None:
    """Keep the first pattern that matches a node, and of its matches the one with most bodies.

    A definition whose name the parser inserted is dropped.
    """
    if captures["name"][0].is_missing:
        return
    kind = next(kind for kind in _KINDS if kind in captures)
    node, bodies = captures[kind][0], captures.get("body", [])
    rank = (pattern, -len(bodies))
    if rank < found.ranks.get(_span(node), (pattern + 1, 0)):
        found.ranks[_span(node)] = rank
        receiver = captures["receiver"][0] if "receiver" in captures else None
        found.definitions[_span(node)] = Definition(kind, node, captures["name"][0], receiver, bodies, *_span(node))


def _last_row(node: Node) -> int:
    """The row of a node's last character: some comments include their line's end."""
    row, column = node.end_point
    return row - 1 if column == 0 and row > node.start_point[0] else row


def _extend(definition: Definition, found: _Matches, source: bytes) -> None:
    """Extend a definition to what wraps it and the attributes before it; find its comments and its docstring."""
    node = definition.node
    while (outer := found.wraps.get(_span(node))) is not None:
        node = outer
    definition.start, definition.end = _span(node)
    row, first = node.start_point[0], node.start_byte
    while (above := _above(found, source, row, first)) is not None:
        row, first = above[0].start_point[0], above[0].start_byte
        if above[1]:
            definition.comments.insert(0, above[0])
        else:
            definition.start = first
    spans = map(_span, [definition.node, *definition.bodies])
    definition.docstring = next((found.docstrings[span] for span in spans if span in found.docstrings), None)


def _above(found: _Matches, source: bytes, row: int, first: int) -> tuple[Node, bool] | None:
    """The comment (True) or attribute directly before a byte: in its row, or at the end of the row above."""
    for each in (found.before.get(row), found.before.get(row - 1)):
        if each is not None and each[0].start_byte < first and not source[each[0].end_byte : first].strip():
            return each
    return None


def _nest(definitions: Iterable[Definition]) -> Iterator[Definition]:
    """Set each definition's scope; drop those inside a function, and those with the body of the enclosing one."""
    around: list[Definition] = []
    for definition in sorted(definitions, key=lambda each: _order(each.node)):
        while around and around[-1].node.end_byte <= definition.node.start_byte:
            around.pop()
        outer = around[-1] if around else None
        if outer is not None:
            same = definition.bodies and outer.bodies and _span(definition.bodies[0]) == _span(outer.bodies[0])
            if same or outer.kind in ("function", "test") or len(around) == _MAX_DEPTH:
                continue
            outer.parts.append(definition)
        definition.scope = tuple(around)
        around.append(definition)
        yield definition


def _calls(names: Iterable[Node], statements: Iterable[Node]) -> Iterator[Call]:
    """Find the statement around each call, in one pass."""
    around: list[Node] = []
    rest = deque(sorted(statements, key=_order))
    for name in sorted({_span(node): node for node in names}.values(), key=_order):
        while rest and rest[0].start_byte <= name.start_byte:
            around.append(rest.popleft())
        while around and around[-1].end_byte < name.end_byte:
            around.pop()
        yield Call(name, around[-1] if around else name)


def _join_clauses(definitions: list[Definition]) -> list[Definition]:
    """Merge consecutive clauses of the same function."""
    joined: list[Definition] = []
    for definition in definitions:
        if joined and _is_next_clause(joined[-1], definition):
            joined[-1].end, joined[-1].bodies = definition.end, joined[-1].bodies + definition.bodies
        else:
            joined.append(definition)
    return joined


def _is_next_clause(last: Definition, definition: Definition) -> bool:
    return (
        last.kind == definition.kind == "function"
        and not definition.comments
        and last.name.text == definition.name.text
        and [outer.node.id for outer in last.scope] == [outer.node.id for outer in definition.scope]
    )


def _span(node: Node) -> Span:
    return node.start_byte, node.end_byte


def _order(node: Node) -> Span:
    """A sort key by which a node comes before the nodes inside it."""
    return node.start_byte, -node.end_byte
