"""Texts from the command line: arguments, standard input, the lines of a file."""

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import typer

from subjects.message import MAX_TEXT_CHARS

STDIN = "-"


def read_texts(arguments: Sequence[str], file: str | None) -> Iterator[str]:
    """The texts to embed, read lazily: each argument, then each line of the file; `-` is standard input.

    Raises BadParameter if there is none, a line is not a text or a file cannot be read.
    """
    lines = _lines(file) if file else iter(())
    texts = itertools.chain((text_of(argument) for argument in arguments), lines)
    first = next(texts, None)
    if first is None:
        raise typer.BadParameter(
            f"{file} is empty" if file else "give a text, - for standard input, or --file FILE", param_hint="TEXT"
        )
    return itertools.chain([first], texts)


def count_texts(arguments: Sequence[str], file: str | None) -> int | None:
    """The number of texts, after a check of each line; None if some come from standard input."""
    if file == STDIN or STDIN in arguments:
        return None
    return sum(1 for _ in read_texts(arguments, file))


def text_of(argument: str) -> str:
    """The argument; for `-` all of standard input without the line break at its end."""
    if argument != STDIN:
        return argument
    try:
        return sys.stdin.read().rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(STDIN, error) from None


def _lines(file: str) -> Iterator[str]:
    try:
        with _standard_input() if file == STDIN else Path(file).open(encoding="utf-8") as stream:
            for number in itertools.count(1):
                line = stream.readline(MAX_TEXT_CHARS + 1)
                if not line:
                    return
                text = line.removesuffix("\n")
                if fault := _fault(text):
                    raise typer.BadParameter(f"line {number} of {file} {fault}", param_hint="--file")
                yield text
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from None


def _standard_input() -> TextIO:
    """A second file object: Python cannot exit while a thread reads sys.stdin, which it closes."""
    return os.fdopen(os.dup(sys.stdin.fileno()), encoding="utf-8")


def _fault(text: str) -> str:
    """The reason why a line is not a text; empty if it is one."""
    if len(text) > MAX_TEXT_CHARS:
        return f"is longer than {MAX_TEXT_CHARS} characters; split it"
    if not text or text.isspace():
        return "is blank; remove it"
    return "holds a NUL character; remove it" if "\0" in text else ""


def _unreadable(file: str, error: Exception) -> typer.BadParameter:
    return typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--file")
