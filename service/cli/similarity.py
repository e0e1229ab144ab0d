"""`mlbus similarity`: the cosine of two texts, or candidates ranked by it."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from subjects.client import CallOptions, MLClient
from subjects.similarity import SimilarityRanking

from .ask import Connection, ask
from .output import out, print_json, shortened
from .texts import text_of


def print_score(a: str, b: str, options: CallOptions, connection: Connection, *, as_json: bool) -> None:
    """Print how alike two texts are. Raises BusError, MLError."""
    a, b = text_of(a), text_of(b)
    reply = ask(connection, lambda nc: MLClient(nc, timeout_s=connection.timeout_s).similarity(a, b, **options))
    if as_json:
        print_json(reply.model_dump())
    else:
        out.print(f"{reply.score:.4f}  ({reply.model} {reply.version}, {reply.usage.tokens} tokens)")


def print_ranking(
    query: str,
    candidates: Sequence[str],
    top_k: int | None,
    options: CallOptions,
    connection: Connection,
    *,
    as_json: bool,
) -> None:
    """Print the candidates, best first. Raises BusError, MLError."""
    query, texts = text_of(query), [text_of(candidate) for candidate in candidates]
    reply = ask(
        connection,
        lambda nc: MLClient(nc, timeout_s=connection.timeout_s).rank(query, texts, top_k=top_k, **options),
    )
    if as_json:
        print_json(reply.model_dump())
    else:
        _show_ranking(reply, texts)


def _show_ranking(reply: SimilarityRanking, texts: Sequence[str]) -> None:
    table = Table("score", "candidate", "text", box=None, pad_edge=False)
    for place in reply.results:
        table.add_row(f"{place.score:.4f}", str(place.index), Text(shortened(texts[place.index], 72)))
    out.print(table)
    out.print(f"{reply.model} {reply.version}, {reply.usage.tokens} tokens")
