"""`mlbus embed --out`: any number of texts into a file of vectors, in memory that does not grow with them."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
from nats.aio.client import Client

from subjects.client import EmbedCallOptions, MLClient
from subjects.embed import EmbedDone
from subjects.errors import Internal
from subjects.names import EncodingFormat

from .ask import Connection, ask
from .output import counter, err, out, print_json
from .texts import count_texts, read_texts
from .vector_files import VectorFile, vector_file


def write_vectors(
    arguments: Sequence[str],
    file: str | None,
    path: Path,
    encoding: EncodingFormat,
    options: EmbedCallOptions,
    connection: Connection,
    *,
    as_json: bool,
) -> None:
    """Embed the texts into the file `path`, and print what was written. Raises BadParameter, BusError, MLError."""
    total = count_texts(arguments, file)
    asked: EmbedCallOptions = {**options, "encoding_format": encoding, "timeout_s": connection.timeout_s}
    with vector_file(path, encoding) as vectors:
        reading = _Reading(read_texts(arguments, file))
        done, cut = ask(connection, lambda nc: _fill(vectors, nc, reading, total, asked))
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
    """The texts on their way: read, and their vectors not here yet."""

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
    """Write all vectors -> what holds for them, and how many of the texts were cut."""
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
