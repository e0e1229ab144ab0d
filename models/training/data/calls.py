"""What a function calls, and how each call looks where it stands."""

from collections.abc import Iterable, Sequence
from textwrap import dedent

from .definitions import Call

_BEFORE, _AROUND, _LONGEST, _WIDEST = 2, 5, 12, 300
"""Lines before a statement, lines around the call in a long one, lines of a call site, characters of a line."""


def call_sites(calls: Iterable[Call], rows: range, lines: Sequence[str]) -> dict[str, str]:
    """The names that are called, in order, and for each the statement around its first call with a line or two before.

    rows: those of the function, from 0, of which no others are shown; lines: of the file.
    """
    sites: dict[str, str] = {}
    for call in calls:
        name = (call.name.text or b"").decode("utf-8", "replace")
        if name not in sites:
            shown = _rows(call, rows)
            # By what all lines share: the first one may be of a deeper block than the call.
            sites[name] = (
                dedent("\n".join(line[:_WIDEST] for line in lines[shown.start : shown.stop])).strip("\n").rstrip()
            )
    return sites


def _rows(call: Call, rows: range) -> range:
    """The rows to show of a call."""
    row = call.name.start_point[0]
    first = max(rows.start, call.statement.start_point[0] - _BEFORE)
    last = min(rows.stop - 1, call.statement.end_point[0])
    if last - first >= _LONGEST:
        first, last = max(first, row - _AROUND), min(last, row + _AROUND)
    return range(min(first, row), max(last, row) + 1)
