"""Pieces of source text as they would stand on their own. Knows bytes and lines, and no language."""

import re
from collections.abc import Iterable, Sequence

Edit = tuple[int, int, bytes]
"""What to put in place of the bytes from the first number to before the second."""
_MARGIN = re.compile(rb"[ \t]*")


def excerpt(source: bytes, start: int, end: int, edits: Iterable[Edit] = ()) -> str:
    """The bytes from start to end with edits made, which may not overlap, and moved to the left margin."""
    line = source.rfind(b"\n", 0, start) + 1
    margin = _MARGIN.fullmatch(source, line, start)
    pieces = [margin[0] if margin else b""]
    for first, last, text in sorted(edits):
        if start <= first and last <= end:
            pieces += [source[start:first], text]
            start = last
    pieces.append(source[start:end])
    return dedented(b"".join(pieces).decode("utf-8", "replace").split("\n"))


def dedented(lines: Sequence[str]) -> str:
    """Lines joined, without the first one's margin. A line that has not that margin stays as it is."""
    first = next((line for line in lines if line.strip()), "")
    margin = first[: len(first) - len(first.lstrip(" \t"))]
    return "\n".join(line.removeprefix(margin) for line in lines).strip("\n").rstrip()


def after_space(source: bytes, position: int) -> int:
    """The first byte from a position on that is no white space and no `;`."""
    while position < len(source) and source[position] in b" \t\r\n\f;":
        position += 1
    return position
