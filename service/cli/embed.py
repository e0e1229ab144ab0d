"""`mlbus embed`: texts from the command line, a file or standard input; vectors out."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import typer
from nats.aio.client import Client

from subjects.client import EmbedCallOptions, MLClient
from subjects.embed import EmbedChunk, EmbedDone, EmbedReply
from subjects.errors import MLError
from subjects.vectors import FloatArray

from .ask import Connection, ask
from .output import counter, err, out, print_json, shortened

STDIN = "-"
SLICE_TEXTS = 1024
SHOWN_VALUES = 6


@dataclass(slots=True)
class Embedded:
    """What came back for many texts; vectors (N, D) in the order of the texts, `truncated` their indices."""

    model: str = ""
    version: str = ""
    tokens: int = 0
    # Not in repr: asyncio.run makes the repr of its task's result, and throws it away.
    vectors: list[FloatArray] = field(default_factory=list, repr=False)
    truncated: set[int] = field(default_factory=set)

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


def read_texts(arguments: Sequence[str], file: str | None) -> list[str]:
    """The texts to embed: each argument, then each line of the file; `-` is standard input.

    Raises BadParameter where there is none, one is blank or a file cannot be read.
    """
    texts = [text_of(argument) for argument in arguments] + (_lines(file) if file else [])
    if not texts:
        raise typer.BadParameter("give a text, - for standard input, or --file FILE", param_hint="TEXT")
    return texts


def text_of(argument: str) -> str:
    """The argument itself, or all of standard input for `-`, without the line break at its end."""
    return _read(STDIN).rstrip("\n") if argument == STDIN else argument


def _lines(file: str) -> list[str]:
    lines = _read(file).removesuffix("\n").split("\n")
    blank = next((number for number, line in enumerate(lines, 1) if not line.strip()), None)
    if blank is not None:
        raise typer.BadParameter(f"line {blank} of {file} is blank; remove it", param_hint="--file")
    return lines


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == STDIN else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--file") from None


def print_vectors(
    texts: Sequence[str], options: EmbedCallOptions, connection: Connection, *, as_list: bool, as_json: bool
) -> None:
    """Embed the texts and print the vectors. Raises BusError, MLError."""
    options = {**options, "timeout_s": connection.timeout_s}
    if as_list:
        many = ask(connection, lambda nc: _embed_many(nc, texts, options))
        print_json(many.objects()) if as_json else _show_many(texts, many)
    else:
        one = ask(connection, lambda nc: MLClient(nc).embed(texts[0], **options))
        print_json({**one.model_dump(exclude={"embedding"}), "embedding": one.embedding}) if as_json else _show_one(one)


async def _embed_many(nc: Client, texts: Sequence[str], options: EmbedCallOptions) -> Embedded:
    client, many = MLClient(nc), Embedded()
    with counter(len(texts), "embedding") as progress:
        for part in slices(texts, nc.max_payload // 2):
            first = len(many.vectors)
            try:
                async for frame in client.embed_stream(part, **options):
                    _gather(many, frame, first)
                    progress.update(progress.task_ids[0], completed=len(many.vectors))
            except MLError as error:
                if first == 0:
                    raise
                raise type(error)(f"{error} (counted from text {first} on)") from None
    return many


def _gather(many: Embedded, frame: EmbedChunk | EmbedDone, first: int) -> None:
    """first: index of the request's first text among all."""
    if isinstance(frame, EmbedDone):
        many.model, many.version = frame.model, frame.version
        many.tokens += frame.usage.tokens
    else:
        many.vectors += frame.embeddings
        many.truncated.update(first + index for index in frame.truncated)


def slices(texts: Sequence[str], limit_bytes: int) -> Iterator[list[str]]:
    """Texts in order, in requests of at most SLICE_TEXTS and, where one alone does not exceed it, `limit_bytes`."""
    part: list[str] = []
    size = 0
    for text in texts:
        text_bytes = len(text.encode(errors="surrogatepass"))
        if part and (len(part) == SLICE_TEXTS or size + text_bytes > limit_bytes):
            yield part
            part, size = [], 0
        part.append(text)
        size += text_bytes
    yield part


def _show_one(reply: EmbedReply) -> None:
    cut = ", text cut to the model's length" if reply.truncated else ""
    out.print(f"{reply.model} {reply.version}, {reply.dimensions} dimensions, {reply.usage.tokens} tokens{cut}")
    out.print(_first_values(reply.embedding))


def _show_many(texts: Sequence[str], many: Embedded) -> None:
    dimensions = len(many.vectors[0])
    out.print(f"{many.model} {many.version}, {dimensions} dimensions, {len(texts)} texts, {many.tokens} tokens")
    for text, vector in zip(texts, many.vectors, strict=True):
        typer.echo(f"{_first_values(vector)}  {shortened(text)}")
    if many.truncated:
        err.print(f"cut to the model's length: {len(many.truncated)} texts")


def _first_values(vector: FloatArray) -> str:
    values = " ".join(f"{value: .4f}" for value in np.asarray(vector)[:SHOWN_VALUES])
    return values + (" …" if len(vector) > SHOWN_VALUES else "")
