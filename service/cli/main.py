"""The `mlbus` command: its options, and the exit codes and messages of errors.

Exit codes: 0 done, 1 failed, 2 not usable as typed or as set.
"""

import io
import os
import sys
from typing import Annotated

import typer

from models.loading import spinning

from .commands import Commands

app = typer.Typer(
    name="mlbus",
    help="Machine learning as a NATS service. Start a worker with [bold]mlbus serve --embedded-nats[/bold], then ask "
    "it from any NATS client, or with the commands below.",
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command. An expected error is one line, any other error a traceback."""
    spinning.prepare()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal gets ? for what it cannot show
    try:
        app()
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        code, line = explained
        typer.echo(f"mlbus: {line}", err=True)
        _forget_unwritten()
        sys.exit(code)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and text of an expected error; None for a bug, which gets a traceback."""
    from nats.errors import Error as NatsError

    from models.errors import BadEntry, ModelError, UnknownModel
    from subjects.errors import InvalidField, Malformed, MLError

    from ..bus.errors import BadBusSettings, BusError
    from ..settings import BadSettings

    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno is None:  # not from the system, but a time-out of our own
        return None
    unusable = (BadSettings, BadBusSettings, BadEntry, UnknownModel, InvalidField, Malformed)
    if not isinstance(error, (*unusable, BusError, ModelError, MLError, NatsError, OSError)):
        return None
    return 2 if isinstance(error, unusable) else 1, str(error).removeprefix("nats: ")


def _forget_unwritten() -> None:
    """Drop unwritten output: Python flushes it once more at exit, and would report a full disk a second time."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"mlbus {version('mlbus')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
