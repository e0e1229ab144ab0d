"""`mlbus tokenize` and `mlbus detokenize`: the tokens of texts, and the text of tokens."""

from typing import Annotated, Any, cast

import typer

from subjects.client.tokenize import TokenizeCallOptions
from subjects.tokenize import DetokenizeRequest, TokenizedText, TokenizeRequest

from .ask import Connection, ask_worker
from .files import read_texts
from .options import Json, NatsUrl, Texts, TextsFile, Timeout, options_of
from .output import out, print_json, shortened, table_of

_HOW = "How they are read"


@options_of(TokenizeRequest, _HOW, "model task prompt_name prompt")
def tokenize(
    text: Texts = None,
    file: TextsFile = None,
    count: Annotated[bool, typer.Option("--count", help="Print the number of tokens of each text alone.")] = False,
    special: Annotated[
        bool,
        typer.Option("--special/--no-special", help="With the model's own special tokens.", rich_help_panel=_HOW),
    ] = True,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
    **options: Any,
) -> None:
    """Show the tokens that a model reads of a text, or count them."""
    texts = list(read_texts(text or [], file))
    call = cast(TokenizeCallOptions, {**options, "count_only": count, "add_special_tokens": special})
    reply = ask_worker(Connection(nats_url, timeout), lambda ml: ml.tokenize(texts, **call))
    if as_json:
        print_json(reply.model_dump(exclude_none=True))
        return
    for place, one in enumerate(texts):
        out.print(f"{reply.counts[place]:>8}  {shortened(one)}")
        if reply.results:
            _show(reply.results[place])
    out.print(f"{reply.model} {reply.version}, {sum(reply.counts)} tokens")


def _show(tokens: TokenizedText) -> None:
    rows = zip(tokens.ids, tokens.offsets or [], tokens.pieces, strict=True)
    out.print(table_of(("id", "bytes", "piece"), [(str(id_), f"{a}-{b}", repr(piece)) for id_, (a, b), piece in rows]))


@options_of(DetokenizeRequest, _HOW, "model")
def detokenize(
    ids: Annotated[list[int], typer.Argument(metavar="ID", help="The token ids of one text.")],
    special: Annotated[
        bool, typer.Option("--special", help="Write the names of special tokens too.", rich_help_panel=_HOW)
    ] = False,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
    **options: Any,
) -> None:
    """Turn token ids into text."""
    connection = Connection(nats_url, timeout)
    reply = ask_worker(connection, lambda ml: ml.detokenize(ids, skip_special_tokens=not special, **options))
    if as_json:
        print_json(reply.model_dump())
    else:
        typer.echo(reply.texts[0])
