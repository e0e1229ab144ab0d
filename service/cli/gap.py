"""The place in a file that `mlbus generate --fim` fills in: FILE:LINE or FILE:LINE:COLUMN, both counted from 1."""

import re
from pathlib import Path

import typer

_PLACE = re.compile(r"(?P<file>.+?):(?P<line>[0-9]{1,9})(?::(?P<column>[0-9]{1,9}))?")
_OPTION = "--fim"


def split_at(place: str) -> tuple[str, str]:
    """What stands before the place, and the rest. Without a column it is the beginning of the line.

    Raises BadParameter where the file cannot be read or has no such place.
    """
    named = _PLACE.fullmatch(place)
    if named is None:
        raise _refused(f"{place!r} is not FILE:LINE or FILE:LINE:COLUMN")
    text = _read(named["file"])
    start = _line_start(text, int(named["line"]), named["file"])
    return _split(text, start, int(named["column"] or 1), f"line {named['line']} of {named['file']}")


def _read(file: str) -> str:
    """The text with the line breaks that it has."""
    try:
        return Path(file).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(f"{file} cannot be read: {error}") from None


def _line_start(text: str, number: int, file: str) -> int:
    """Where a line begins; behind the last line break there is one more, an empty one."""
    lines = text.split("\n")
    if not 1 <= number <= len(lines):
        raise _refused(f"{file} has no line {number}: it has {len(lines)}, counted from 1")
    return sum(len(line) + 1 for line in lines[: number - 1])


def _split(text: str, start: int, column: int, where: str) -> tuple[str, str]:
    line = text[start:].partition("\n")[0].removesuffix("\r")
    if not 1 <= column <= len(line) + 1:
        raise _refused(f"{where} has no column {column}: it ends at {len(line) + 1}, counted from 1")
    return text[: start + column - 1], text[start + column - 1 :]


def _refused(reason: str) -> typer.BadParameter:
    return typer.BadParameter(reason, param_hint=_OPTION)
