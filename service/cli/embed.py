"""`mlbus embed`: vectors of texts, on standard output or in a file.

With a file, memory does not grow with the number of texts.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import typer
from nats.aio.client import Client

from subjects.client import EmbedCallOptions, MLClient
from subjects.embed import EmbedChunk, EmbedDone, EmbedOptions
from subjects.errors import Internal
from subjects.vectors import WireArray

from .ask import Connection, ask
from .options import Json, NatsUrl, Timeout, options_of
from .output import counter, err, out, print_json, shortened
from .texts import count_texts, read_texts
from .vector_files import VectorFile, vector_file

SHOWN_VALUES = 6
_FILE = "Into a file"


@options_of(
    EmbedOptions,
    "How the texts are read",
    "model dimensions task prompt_name prompt truncate normalize priority",
)
def embed(
    text: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="Texts; - reads one from standard input.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="One text a line; - reads standard input.")
    ] = None,
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
    reply = ask(connection, lambda nc: MLClient(nc).embed(text, **options))
    if as_json:
        print_json({**reply.model_dump(exclude={"embedding"}), "embedding": reply.embedding})
        return
    cut = ", text cut to the model's length" if reply.truncated else ""
    out.print(f"{reply.model} {reply.version}, {reply.dimensions} dimensions, {reply.usage.tokens} tokens{cut}")
    out.print(_first_values(reply.embedding))


@dataclass(slots=True)
class Embedded:
    """The frames for many texts, collected. vectors (N, D): in the order of the texts. truncated: indices of texts."""

    model: str = ""
    version: str = ""
    tokens: int = 0
    # Not in repr: asyncio.run makes the repr of its task's result and does not use it.
    vectors: list[WireArray] = field(default_factory=list, repr=False)
    truncated: set[int] = field(default_factory=set)

    def add(self, frame: EmbedChunk | EmbedDone) -> None:
        if isinstance(frame, EmbedDone):
            self.model, self.version, self.tokens = frame.model, frame.version, frame.usage.tokens
        else:
            self.vectors += frame.embeddings
            self.truncated.update(frame.truncated)

    def objects(self) -> list[dict[str, Any]]:
        """One object a text."""
        return [
            {
                "index": index,
                "model": self.model,
                "version": self.version,
                "dimensions": len(vector),
                "truncated": index in self.truncated,
                "embedding": vector,
            }
            for index, vector in enumerate(self.vectors)
        ]


def _print_many(texts: Sequence[str], options: EmbedCallOptions, connection: Connection, *, as_json: bool) -> None:
    many = ask(connection, lambda nc: _embed_many(nc, texts, options))
    if as_json:
        print_json(many.objects())
        return
    dimensions = len(many.vectors[0])
    out.print(f"{many.model} {many.version}, {dimensions} dimensions, {len(texts)} texts, {many.tokens} tokens")
    for text, vector in zip(texts, many.vectors, strict=True):
        typer.echo(f"{_first_values(vector)}  {shortened(text)}")
    if many.truncated:
        err.print(f"cut to the model's length: {len(many.truncated)} texts")


async def _embed_many(nc: Client, texts: Sequence[str], options: EmbedCallOptions) -> Embedded:
    many = Embedded()
    with counter(len(texts), "embedding") as progress:
        async with aclosing(MLClient(nc).embed_all(texts, **options)) as frames:
            async for frame in frames:
                many.add(frame)
                progress.update(progress.task_ids[0], completed=len(many.vectors))
    return many


def _first_values(vector: WireArray) -> str:
    values = " ".join(f"{value: .4f}" for value in np.asarray(vector)[:SHOWN_VALUES])
    return values + (" …" if len(vector) > SHOWN_VALUES else "")


def _write_vectors(
    arguments: Sequence[str],
    file: str | None,
    path: Path,
    options: EmbedCallOptions,
    connection: Connection,
    *,
    as_json: bool,
) -> None:
    """Embed the texts into the file `path`, and print what was written."""
    total, encoding = count_texts(arguments, file), options["encoding_format"]
    with vector_file(path, encoding) as vectors:
        reading = _Reading(read_texts(arguments, file))
        done, cut = ask(connection, lambda nc: _fill(vectors, nc, reading, total, options))
        facts = {"model": done.model, "version": done.version, "dimensions": done.dimensions, "encoding": encoding}
        vectors.describe({name: str(fact) for name, fact in facts.items()})
    if as_json:
        print_json(
            {"file": str(path), **facts, "count": done.count, "usage": done.usage.model_dump(), "truncated": cut}
        )
        return
    out.print(
        f"{done.model} {done.version}, {done.dimensions} dimensions, {encoding}, {done.count} texts, "
        f"{done.usage.tokens} tokens: {path}"
    )
    if cut:
        err.print(f"cut to the model's length: {cut} texts")


class _Reading:
    """The texts that were read and whose vectors have not come yet."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self._waiting: deque[str] = deque()
        self.count = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self._waiting.append(text)
            self.count += 1
            yield text

    def take(self, count: int) -> list[str]:
        return [self._waiting.popleft() for _ in range(count)]


async def _fill(
    file: VectorFile, nc: Client, reading: _Reading, total: int | None, options: EmbedCallOptions
) -> tuple[EmbedDone, int]:
    """Write all vectors -> the last frame, and the number of texts that were cut."""
    cut = written = 0
    with counter(total or 0, "embedding") as progress:
        async with aclosing(MLClient(nc).embed_all(reading, **options)) as frames:
            async for frame in frames:
                if isinstance(frame, EmbedDone):
                    return frame, cut
                file.write(reading.take(len(frame.embeddings)), np.stack(frame.embeddings))
                cut += len(frame.truncated)
                written += len(frame.embeddings)
                progress.update(progress.task_ids[0], completed=written, total=total or reading.count)
    raise Internal("the stream ended without its last frame")
