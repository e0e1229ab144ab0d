"""The `mlbus` command: the list of commands, and the exit codes and messages of errors.

Exit codes: 0 done, 1 failed, 2 not usable as typed or as set.
"""

import io
import os
import sys
from typing import Annotated

import typer

from models.loading import spinning

from .lazy import LazyCommand, group_of

_TUNE, _WORKER, _ASK, _LOOK = "Fine-tune", "Run", "Ask a worker", "Look around"

_COMMANDS = (
    LazyCommand(
        "finetune",
        "finetune:finetune",
        "Train an embedding model on your own code and verify the outcome, as a job on a worker.",
        _TUNE,
    ),
    LazyCommand(
        "jobs",
        "jobs:jobs_app",
        "Trainings: those that wait, go on or are over. Alone: the list, which is the administrator's.",
        _TUNE,
    ),
    LazyCommand("data", "data:data_app", "Training data for fine-tuning, made on this machine.", _TUNE),
    LazyCommand(
        "serve", "serve:serve", "Run a worker until Ctrl-C or SIGTERM, which finish what is in flight.", _WORKER
    ),
    LazyCommand(
        "gateway",
        "gateway:gateway",
        "Answer over HTTP what workers answer over NATS, until Ctrl-C or SIGTERM, which finish what is in flight.",
        _WORKER,
    ),
    LazyCommand("admin", "admin:admin_app", "Set up the NATS server and who may use it.", _WORKER),
    LazyCommand("embed", "embed:embed", "Turn texts into vectors.", _ASK),
    LazyCommand(
        "similarity",
        "similarity:similarity",
        "Compare two texts, or rank candidates by their likeness to a query. The score is the cosine, -1 to 1.",
        _ASK,
    ),
    LazyCommand(
        "generate",
        "generate:generate",
        "Complete a text, answer a question or fill in a gap. Ctrl-C ends the work at the worker too.",
        _ASK,
    ),
    LazyCommand("tokenize", "tokenize:tokenize", "Show the tokens that a model reads of a text, or count them.", _ASK),
    LazyCommand("detokenize", "tokenize:detokenize", "Turn token ids into text.", _ASK),
    LazyCommand(
        "ping",
        "discover:ping",
        "Show the workers that answer, what they serve and how fast. Exit code 1 when there is none.",
        _LOOK,
    ),
    LazyCommand(
        "doctor",
        "doctor:doctor",
        "Check this machine, the NATS server and the workers, and say what to do. Exit code 1 when something fails.",
        _LOOK,
    ),
    LazyCommand(
        "schema",
        "discover:schema",
        "Print the JSON Schemas of the request and the reply on a subject, by subject.",
        _LOOK,
    ),
    LazyCommand(
        "models", "models:models_app", "The catalogue and the weights on this machine. Alone: the list.", _LOOK
    ),
)

app = typer.Typer(
    name="mlbus",
    help="Machine learning as a NATS service. Start a worker with [bold]mlbus serve --embedded-nats[/bold], then ask "
    "it from any NATS client, or with the commands below.",
    cls=group_of(*_COMMANDS),
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
        from .errors import explain

        explained = explain(error)
        if explained is None:
            raise
        code, line = explained
        typer.echo(f"mlbus: {line}", err=True)
        _forget_unwritten()
        sys.exit(code)


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
