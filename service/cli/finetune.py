"""`mlbus finetune`: what can be typed. What it does is in finetune_command.py, imported when it runs."""

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from .options import Json, NatsUrl, Timeout

MethodName: TypeAlias = Literal["auto", "lora", "full"]
LossName: TypeAlias = Literal["infonce", "triplet"]

_HOW = "How it is trained"
_OPTIONS = (
    *("method", "loss", "matryoshka", "epochs", "batch_size", "learning_rate", "max_tokens", "hard_negatives", "seed"),
)


def finetune(
    context: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(metavar="PATH", help="A codebase on the worker's machine, below finetune.roots.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help='Pairs of your own instead, a JSON line each: {"anchor": …, "positive": …, "negatives": […]}; '
            "- reads standard input.",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Embedding model; absent: the worker's default.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch/--no-watch", help="Show how it goes on, until it is over.")] = False,
    job_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The job's id; the same again is the same job.")
    ] = None,
    promote: Annotated[
        bool, typer.Option("--promote", help="Serve the new version once it has passed; needs the role admin.")
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(metavar="N", help="Times over all pairs.", show_default="1", rich_help_panel=_HOW)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Pairs that are told apart from each other.", show_default="32", rich_help_panel=_HOW
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="RATE", show_default="1e-5", rich_help_panel=_HOW)
    ] = None,
    method: Annotated[
        MethodName | None,
        typer.Option(help="auto: full up to 200 M parameters, else lora.", show_default="auto", rich_help_panel=_HOW),
    ] = None,
    loss: Annotated[
        LossName | None,
        typer.Option(
            help="Against the other pairs of a batch, or each pair's negatives.",
            show_default="infonce",
            rich_help_panel=_HOW,
        ),
    ] = None,
    matryoshka: Annotated[
        bool | None,
        typer.Option(
            "--matryoshka", help="Let the first values of a vector stand for the whole.", rich_help_panel=_HOW
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Of a text.", show_default="256, or what the model takes", rich_help_panel=_HOW),
    ] = None,
    hard_negatives: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="For each pair of a codebase, similar texts that are wrong.",
            show_default="1",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same gives the same training.", show_default="0", rich_help_panel=_HOW),
    ] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Train an embedding model on your own code and verify the outcome, as a job on a worker.

    What passes is kept as a candidate. With --promote, or `mlbus models promote`, it is served.

    With --watch the exit code is 1 unless it is done; Ctrl-C leaves the job running. With --json as well, each state is
    an object on a line of its own.
    """
    from .ask import Connection
    from .finetune_command import Order, start

    options = {name: context.params[name] for name in _OPTIONS if context.params[name] is not None}
    order = Order(path, data, model, job_id, promote, options)
    raise typer.Exit(start(order, Connection(nats_url, timeout), watch=watch, as_json=as_json))
