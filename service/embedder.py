"""Embedding as handlers ask for it: a model by name, texts in, finished vectors out, through that model's batcher."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from models.catalogue import Catalogue
from models.encoders.base import Encoder, TextOptions, Vectors, check_options
from models.errors import ModelUnavailable

from .batcher import Batcher
from .work import Embedded, Finish, Work

WINDOW = 256
"""Texts of one request that are queued at a time, two windows ahead: a bulk request must not own the queue."""


@dataclass(frozen=True, slots=True)
class How:
    """How texts of a request are embedded. deadline: loop time in seconds."""

    options: TextOptions
    finish: Finish
    deadline: float


@dataclass(frozen=True, slots=True)
class Part:
    """The vectors of texts[index : index + len(vectors)]; truncated: indices within the request."""

    index: int
    vectors: list[Vectors]
    tokens: int
    truncated: list[int]


class Embedder:
    """The loaded models and their batchers. The first is the default."""

    def __init__(self, catalogue: Catalogue, batchers: Sequence[Batcher]) -> None:
        self._catalogue = catalogue
        self.batchers: Mapping[str, Batcher] = {batcher.encoder.model: batcher for batcher in batchers}
        self.default = batchers[0].encoder.model

    def encoder(self, model: str | None) -> Encoder:
        """Raises UnknownModel, ModelUnavailable."""
        return self._batcher(model).encoder

    def _batcher(self, model: str | None) -> Batcher:
        batcher = self.batchers.get(model or self.default)
        if batcher is None:
            spec = self._catalogue.get(model or self.default)
            loaded = f"loaded: {', '.join(self.batchers)}"
            if spec.unserved:
                raise ModelUnavailable(
                    spec.id, f"this version of mlbus does not serve it yet: {spec.unserved}; {loaded}"
                )
            raise ModelUnavailable(spec.id, f"it is not loaded on this worker; {loaded}")
        return batcher

    def described(self) -> dict[str, str]:
        """For discovery: each model's version and device."""
        encoders = [batcher.encoder for batcher in self.batchers.values()]
        return {f"model.{encoder.model}": f"{encoder.version} on {encoder.device}" for encoder in encoders}

    def queued(self) -> tuple[int, int]:
        """Texts and tokens that wait or run, over all models."""
        batchers = self.batchers.values()
        return sum(batcher.queued_texts for batcher in batchers), sum(batcher.queued_tokens for batcher in batchers)

    async def embed(self, model: str | None, text: str, how: How) -> Embedded:
        """One text. Raises Busy, DeadlinePassed and the errors of `models`."""
        batcher = self._batcher(model)
        check_options(batcher.encoder, how.options, how.finish.dimensions)
        (work,) = batcher.submit([text], how.options, how.finish, how.deadline)
        return await work.future

    async def embed_all(self, model: str | None, texts: Sequence[str], how: How) -> Part:
        """Many texts as one Part; what is found wrong with one ends all."""
        vectors: list[Vectors] = []
        truncated: list[int] = []
        tokens = 0
        async with aclosing(self.embed_parts(model, texts, how)) as parts:
            async for part in parts:
                vectors += part.vectors
                truncated += part.truncated
                tokens += part.tokens
        return Part(0, vectors, tokens, truncated)

    async def embed_parts(
        self, model: str | None, texts: Sequence[str], how: How, window: int = WINDOW
    ) -> AsyncGenerator[Part, None]:
        """Many texts, in order, as they are ready. Closing it early drops what has not run."""
        batcher = self._batcher(model)
        check_options(batcher.encoder, how.options, how.finish.dimensions)
        ahead: deque[list[Work]] = deque()
        try:
            for start in range(0, len(texts), window):
                part = texts[start : start + window]
                if start:
                    await batcher.room(part)
                ahead.append(batcher.submit(part, how.options, how.finish, how.deadline, start))
                if len(ahead) == 2:
                    yield await _collect(ahead[0])
                    ahead.popleft()
            while ahead:
                yield await _collect(ahead[0])
                ahead.popleft()
        finally:
            _abandon(work for works in ahead for work in works)


def _abandon(works: Iterable[Work]) -> None:
    for work in works:
        if not work.future.cancel() and not work.future.cancelled():
            work.future.exception()  # seen: one failure of a request is reported, the others are not


async def _collect(works: list[Work]) -> Part:
    done = await asyncio.gather(*(work.future for work in works))
    return Part(
        index=works[0].index,
        vectors=[embedded.vector for embedded in done],
        tokens=sum(embedded.tokens for embedded in done),
        truncated=[work.index for work, embedded in zip(works, done, strict=True) if embedded.truncated],
    )
