"""`mlbus embed`, `similarity` and `generate` as they are typed; what each does is in its own module, imported then."""

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
    from subjects.client.generate import GenerateCallOptions

_FILE = "Into a file"
_FORM = "What is completed"
_WRITING = "How the text is written"
_READING = ("model", "dimensions", "task", "prompt_name", "prompt", "truncate", "priority")
"""The parameters of both commands that say how texts are read; a request's fields have the same names."""

_SAMPLING = ("model", "max_tokens", "temperature", "top_p", "top_k", "seed", "echo", "logprobs")
"""The parameters of `generate` that are fields of its request, besides --stop."""


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


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="Text to go on with; - reads standard input.")
    ] = None,
    fim: Annotated[
        str | None,
        typer.Option(
            metavar="FILE:LINE[:COLUMN]",
            help="Fill in the middle: print what may stand before this place.",
            rich_help_panel=_FORM,
        ),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="PROMPT is a question to answer, by a chat model.", rich_help_panel=_FORM)
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With --chat: what holds for it.", rich_help_panel=_FORM)
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Model; absent: the worker's default.", rich_help_panel=_WRITING)
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How long it may get; 0 with --echo: PROMPT alone.",
            show_default="256",
            rich_help_panel=_WRITING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            metavar="T", help="0 to 2; 0: always the likeliest.", show_default="the model's", rich_help_panel=_WRITING
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Only the likeliest tokens of this mass.",
            show_default="the model's",
            rich_help_panel=_WRITING,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the N likeliest.", show_default="the model's", rich_help_panel=_WRITING),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same gives the same text.", show_default="drawn", rich_help_panel=_WRITING),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="End before this text; repeat for more.", rich_help_panel=_WRITING),
    ] = None,
    echo: Annotated[
        bool | None, typer.Option("--echo", help="Begin with PROMPT itself.", rich_help_panel=_WRITING)
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --json: each token's log-probability, with --echo PROMPT's too, and the N likeliest there.",
            rich_help_panel=_WRITING,
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="Print as it is written.", show_default="on a terminal"),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Tell tokens, time and seed on standard error.")
    ] = False,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 120.0,
) -> None:
    """Complete a text, answer a question or fill in a gap. Ctrl-C ends the work at the worker too.

    With --json the reply is an object; with --stream as well, each frame is one, on a line of its own.
    """
    from .ask import Connection
    from .generate import Output, form_of, print_completion

    if logprobs is not None and not as_json:
        raise typer.BadParameter("is for --json", param_hint="--logprobs")
    typed = {name: context.params[name] for name in _SAMPLING} | {"stop": stop}
    given = {name: value for name, value in typed.items() if value is not None}
    form = form_of(prompt, fim, system, chat=chat)
    output = Output(stream, verbose, as_json)
    print_completion(form, cast("GenerateCallOptions", given), Connection(nats_url, timeout), output)
