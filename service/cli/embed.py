"""`mlbus embed`: vectors of texts, on standard output or in a file; and `mlbus similarity`: their cosines."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import typer

from subjects.client import CallOptions, EmbedCallOptions, MLClient
from subjects.embed import EmbedChunk, EmbedDone, EmbedOptions, EncodeOptions, SimilarityRanking, SimilarityScore
from subjects.errors import Internal
from subjects.vectors import WireArray

from .ask import Connection, ask_worker
from .files import count_texts, read_texts, text_of, vector_file
from .options import Json, NatsUrl, Texts, TextsFile, Timeout, options_of
from .output import counter, err, out, print_json, shortened, table_of

SHOWN_VALUES = 6
_FILE = "Into a file"


@options_of(
    EmbedOptions,
    "How the texts are read",
    "model dimensions task prompt_name prompt truncate normalize priority",
)
def embed(
    text: Texts = None,
    file: TextsFile = None,
    path: Annotated[
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
        Literal["float32", "float16", "int8", "binary"] | None,
        typer.Option(
            "--encoding",
            help="Of the values in the file; int8 and binary as in the reply to a request.",
            show_default="float32",
            rich_help_panel=_FILE,
        ),
    ] = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
    **options: Any,
) -> None:
    """Turn texts into vectors.

    With --json one text gives an object, several or a --file give a list of objects.

    With --out the vectors go to a file, which appears when it is complete; any number of texts takes little memory.
    """
    texts, connection = text or [], Connection(nats_url, timeout)
    call = cast(EmbedCallOptions, {**options, "timeout_s": timeout})
    if path is not None:
        call["encoding_format"] = encoding or "float32"
        _write_vectors(texts, file, path, call, connection, as_json=as_json)
    elif encoding is not None:
        raise typer.BadParameter("is for --out FILE", param_hint="--encoding")
    elif file is not None or len(texts) > 1:
        _print_many(list(read_texts(texts, file)), call, connection, as_json=as_json)
    else:
        (only,) = read_texts(texts, None)
        _print_one(only, call, connection, as_json=as_json)


def _print_one(text: str, options: EmbedCallOptions, connection: Connection, *, as_json: bool) -> None:
    reply = ask_worker(connection, lambda ml: ml.embed(text, **options))
    if as_json:
        print_json({**reply.model_dump(exclude={"embedding"}), "embedding": reply.embedding})
        return
    cut = ", text cut to the model's length" if reply.truncated else ""
    out.print(f"{reply.model} {reply.version}, {reply.dimensions} dimensions, {reply.usage.tokens} tokens{cut}")
    out.print(_first_values(reply.embedding))


def _print_many(texts: Sequence[str], options: EmbedCallOptions, connection: Connection, *, as_json: bool) -> None:
    chunks: list[EmbedChunk] = []
    done = ask_worker(connection, lambda ml: _embed_all(ml, texts, len(texts), options, chunks.append))
    vectors = [vector for chunk in chunks for vector in chunk.embeddings]
    truncated = {index for chunk in chunks for index in chunk.truncated}
    if as_json:
        facts = {"model": done.model, "version": done.version, "dimensions": done.dimensions}
        print_json(
            [
                {"index": index, **facts, "truncated": index in truncated, "embedding": vector}
                for index, vector in enumerate(vectors)
            ]
        )
        return
    out.print(_summary(done))
    for text, vector in zip(texts, vectors, strict=True):
        typer.echo(f"{_first_values(vector)}  {shortened(text)}")
    _tell_cut(len(truncated))


def _first_values(vector: WireArray) -> str:
    values = " ".join(f"{value: .4f}" for value in np.asarray(vector)[:SHOWN_VALUES])
    return values + (" …" if len(vector) > SHOWN_VALUES else "")


def _summary(done: EmbedDone, encoding: str = "") -> str:
    parts = [f"{done.model} {done.version}", f"{done.dimensions} dimensions", *([encoding] if encoding else [])]
    return ", ".join([*parts, f"{done.count} texts", f"{done.usage.tokens} tokens"])


def _tell_cut(texts: int) -> None:
    if texts:
        err.print(f"cut to the model's length: {texts} texts")


def _write_vectors(
    arguments: Sequence[str],
    file: str | None,
    path: Path,
    options: EmbedCallOptions,
    connection: Connection,
    *,
    as_json: bool,
) -> None:
    """Embed the texts into the file `path`, and print what was written. Memory does not grow with their number."""
    total, encoding, cut = count_texts(arguments, file), options["encoding_format"], 0
    waiting: deque[str] = deque()
    with vector_file(path, encoding) as vectors:
        texts = read_texts(arguments, file)

        def read() -> Iterator[str]:
            for text in texts:
                waiting.append(text)
                yield text

        def write(chunk: EmbedChunk) -> None:
            nonlocal cut
            cut += len(chunk.truncated)
            vectors.write([waiting.popleft() for _ in chunk.embeddings], np.stack(chunk.embeddings))

        done = ask_worker(connection, lambda ml: _embed_all(ml, read(), total, options, write))
        facts = {"model": done.model, "version": done.version, "dimensions": done.dimensions, "encoding": encoding}
        vectors.describe({name: str(fact) for name, fact in facts.items()})
    if as_json:
        print_json(
            {"file": str(path), **facts, "count": done.count, "usage": done.usage.model_dump(), "truncated": cut}
        )
        return
    out.print(f"{_summary(done, encoding)}: {path}")
    _tell_cut(cut)


async def _embed_all(
    ml: MLClient,
    texts: Iterable[str],
    total: int | None,
    options: EmbedCallOptions,
    on_chunk: Callable[[EmbedChunk], None],
) -> EmbedDone:
    """Embed texts with a progress bar, and pass on their vectors as they come -> the last frame.

    total: the number of texts; None if it is not known.
    """
    embedded = 0
    with counter(total, "embedding") as progress:
        async with aclosing(ml.embed_all(texts, **options)) as frames:
            async for frame in frames:
                if isinstance(frame, EmbedDone):
                    return frame
                on_chunk(frame)
                embedded += len(frame.embeddings)
                progress.update(progress.task_ids[0], completed=embedded)
    raise Internal("the stream ended without its last frame")


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
    rows = [(f"{one.score:.4f}", str(one.index), shortened(texts[one.index], 72)) for one in reply.results]
    out.print(table_of(("score", "candidate", "text"), rows))
    out.print(f"{reply.model} {reply.version}, {reply.usage.tokens} tokens")
