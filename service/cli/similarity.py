"""`mlbus similarity`: the cosine of two texts, or candidates ranked by it."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

import typer
from rich.table import Table
from rich.text import Text

from subjects.client import CallOptions
from subjects.embed import EncodeOptions, SimilarityRanking, SimilarityScore

from .ask import Connection, ask_worker
from .options import Json, NatsUrl, Timeout, options_of
from .output import out, print_json, shortened
from .texts import text_of


@options_of(EncodeOptions, "How the texts are read", "model dimensions task prompt_name prompt truncate priority")
def similarity(
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT", help="Two texts; or with --query the candidates. - reads standard input."),
    ],
    query: Annotated[
        str | None, typer.Option("--query", metavar="TEXT", help="Rank the texts by their likeness to this one.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", metavar="N", help="With --query: only the best N.")] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
    **options: Any,
) -> None:
    """Compare two texts, or rank candidates by their likeness to a query. The score is the cosine, -1 to 1."""
    connection, call = Connection(nats_url, timeout), cast(CallOptions, options)
    if query is None and (len(texts) != 2 or top_k is not None):
        raise typer.BadParameter("give two texts, or --query TEXT and candidates (and --top-k if wanted)")
    query = None if query is None else text_of(query)
    texts = [text_of(text) for text in texts]
    reply: SimilarityScore | SimilarityRanking
    if query is None:
        reply = ask_worker(connection, lambda ml: ml.similarity(*texts, **call))
    else:
        reply = ask_worker(connection, lambda ml: ml.rank(query, texts, top_k=top_k, **call))
    if as_json:
        print_json(reply.model_dump())
    elif isinstance(reply, SimilarityScore):
        out.print(f"{reply.score:.4f}  ({reply.model} {reply.version}, {reply.usage.tokens} tokens)")
    else:
        _show_ranking(reply, texts)


def _show_ranking(reply: SimilarityRanking, texts: Sequence[str]) -> None:
    table = Table("score", "candidate", "text", box=None, pad_edge=False)
    for place in reply.results:
        table.add_row(f"{place.score:.4f}", str(place.index), Text(shortened(texts[place.index], 72)))
    out.print(table)
    out.print(f"{reply.model} {reply.version}, {reply.usage.tokens} tokens")
