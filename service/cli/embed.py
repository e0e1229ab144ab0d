"""`mlbus embed`: texts in, vectors on standard output."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import typer
from nats.aio.client import Client

from subjects.client import EmbedCallOptions, MLClient
from subjects.embed import EmbedChunk, EmbedDone, EmbedReply
from subjects.encodings import WireArray

from .ask import Connection, ask
from .output import counter, err, out, print_json, shortened

SHOWN_VALUES = 6


@dataclass(slots=True)
class Embedded:
    """What came back for many texts; vectors (N, D) in the order of the texts, `truncated` their indices."""

    model: str = ""
    version: str = ""
    tokens: int = 0
    # Not in repr: asyncio.run makes the repr of its task's result, and throws it away.
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
    many = Embedded()
    with counter(len(texts), "embedding") as progress:
        async with aclosing(MLClient(nc).embed_all(texts, **options)) as frames:
            async for frame in frames:
                many.add(frame)
                progress.update(progress.task_ids[0], completed=len(many.vectors))
    return many


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


def _first_values(vector: WireArray) -> str:
    values = " ".join(f"{value: .4f}" for value in np.asarray(vector)[:SHOWN_VALUES])
    return values + (" …" if len(vector) > SHOWN_VALUES else "")
