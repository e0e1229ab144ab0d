"""`mlbus embed` and `mlbus similarity` as they are typed; what they do is in modules of their own, imported then."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from .options import (
    MODEL,
    Dimensions,
    FileEncoding,
    Json,
    Model,
    NatsUrl,
    Priority,
    Prompt,
    PromptName,
    Task,
    Timeout,
    Truncate,
)

if TYPE_CHECKING:
    from subjects.client import EmbedCallOptions

_FILE = "Into a file"
_READING = ("model", "dimensions", "task", "prompt_name", "prompt", "truncate", "priority")
"""The parameters of both commands that say how texts are read; a request's fields have the same names."""


def embed(
    context: typer.Context,
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; - reads one from standard input.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="One text a line; - reads standard input.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            dir_okay=False,
            help="Write the vectors to a .npy or .parquet file, as they come.",
            rich_help_panel=_FILE,
        ),
    ] = None,
    encoding: Annotated[
        FileEncoding | None,
        typer.Option(
            "--encoding",
            help="Of the values in the file; int8 and binary as in the reply to a request.",
            show_default="float32",
            rich_help_panel=_FILE,
        ),
    ] = None,
    model: Model = None,
    dimensions: Dimensions = None,
    task: Task = None,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    truncate: Truncate = "end",
    normalize: Annotated[
        bool | None,
        typer.Option(
            "--normalize/--no-normalize",
            help="Scale each vector to length 1.",
            show_default="as the model's entry says",
            rich_help_panel=MODEL,
        ),
    ] = None,
    priority: Priority = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Turn texts into vectors.

    With --json one text gives an object, several or a --file give a list of objects.

    With --out the vectors go to a file, which appears when it is complete; any number of texts takes little memory.
    """
    from .ask import Connection

    options: EmbedCallOptions = {**_reading(context), "normalize": normalize}
    texts, connection = text or [], Connection(nats_url, timeout)
    if out is not None:
        from .embed_file import write_vectors

        write_vectors(texts, file, out, encoding or "float32", options, connection, as_json=as_json)
    elif encoding is not None:
        raise typer.BadParameter("is for --out FILE", param_hint="--encoding")
    else:
        from .embed import print_vectors
        from .texts import read_texts

        as_list = file is not None or len(texts) > 1
        print_vectors(list(read_texts(texts, file)), options, connection, as_list=as_list, as_json=as_json)


def similarity(
    context: typer.Context,
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT", help="Two texts; or with --query the candidates. - reads standard input."),
    ],
    query: Annotated[
        str | None, typer.Option("--query", metavar="TEXT", help="Rank the texts by their likeness to this one.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="N", help="With --query: only the best N.")] = None,
    model: Model = None,
    dimensions: Dimensions = None,
    task: Task = None,
    prompt_name: PromptName = None,
    prompt: Prompt = None,
    truncate: Truncate = "end",
    priority: Priority = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Compare two texts, or rank candidates by their likeness to a query. The score is the cosine, -1 to 1."""
    from .ask import Connection
    from .similarity import print_ranking, print_score

    options = _reading(context)
    connection = Connection(nats_url, timeout)
    if query is not None:
        print_ranking(query, texts, top_k, options, connection, as_json=as_json)
    elif len(texts) == 2 and top_k is None:
        print_score(texts[0], texts[1], options, connection, as_json=as_json)
    else:
        raise typer.BadParameter("give two texts, or --query TEXT and candidates (and --top-k if wanted)")


def _reading(context: typer.Context) -> "EmbedCallOptions":
    """What was typed of them."""
    return cast("EmbedCallOptions", {name: context.params[name] for name in _READING})
