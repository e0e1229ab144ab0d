"""Output of the commands: results on standard output, progress and notes on standard error."""

import asyncio
import functools
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

SHOW_AFTER_S = 1.0
PIPE_COLUMNS = 200

# Python sets a closed standard output to None, and print, typer and rich then print nothing.
_on_terminal = sys.stdout is not None and sys.stdout.isatty()
_plain_console = functools.partial(Console, highlight=False, markup=False, emoji=False, soft_wrap=True)
out = _plain_console(width=None if _on_terminal else PIPE_COLUMNS)
err = _plain_console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document: indented on a terminal, one line otherwise. numpy arrays are lists of numbers."""
    indent = orjson.OPT_INDENT_2 if out.is_terminal else 0
    typer.echo(orjson.dumps(value, option=indent | orjson.OPT_SERIALIZE_NUMPY).decode())


def table_of(headings: Sequence[str], rows: Iterable[Sequence[str]], whole: Collection[str] = ()) -> Table:
    """A table for people, without a head if all headings are empty. whole: those whose cells are not broken."""
    table = Table(box=None, pad_edge=False, show_header=any(headings))
    for heading in headings:
        table.add_column(heading, no_wrap=heading in whole, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def spinner() -> Progress:
    """A line with the present step and its time, which vanishes at the end; nothing if there is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal, redirect_stderr=False)


@contextmanager
def counter(total: int | None, what: str) -> Iterator[Progress]:
    """A progress bar for task 0, which appears after a second; for use inside an event loop."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    progress.add_task(what, total=total)
    timer = asyncio.get_running_loop().call_later(SHOW_AFTER_S, progress.start)
    try:
        yield progress
    finally:
        timer.cancel()
        progress.stop()


def licence_text(facts: Mapping[str, Any]) -> str:
    """A model's licence, marked where it forbids commercial use."""
    return (facts["licence"] or "unknown") + (" (non-commercial)" if facts["commercial"] is False else "")


def shortened(text: str, width: int = 48) -> str:
    """A text in one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
