"""`ml.embed`, `ml.embed.batch` and `ml.similarity`: texts in, vectors or their cosines out."""

from typing import Annotated, TypeAlias

from pydantic import (
    Field,
    StringConstraints,
    model_validator,
)

from .message import STREAM, IdLists, Message, Reply, Stream, Text, Token, TokenIds
from .names import EncodingFormat, Priority, Truncate
from .vectors import INT8_RANGE, Vector

MAX_TEXTS = 65536
MAX_CANDIDATES = 2048
MAX_INTERACTIVE_TEXTS = 32
"""A request with more texts is bulk unless it names a priority."""


class EncodeOptions(Message):
    """The options of every request that embeds texts."""

    model: Token | None = Field(None, description="model id; absent: the worker's default")
    dimensions: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="cut each vector to its first values and scale it to length 1 again; some models allow only "
        "certain lengths",
    )
    task: Token | None = Field(
        None, description="one of the model's tasks, with the prompt that belongs to it; absent: its default task"
    )
    prompt_name: Token | None = Field(None, description="one of the model's own prompts, by name")
    prompt: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        None, description="put before each text; instead of prompt_name"
    )
    truncate: Truncate = Field(
        "end", description="which end of a text past the model's length is cut; error: refuse it with 413"
    )
    priority: Priority | None = Field(
        None, description=f"absent: interactive for up to {MAX_INTERACTIVE_TEXTS} texts, else bulk; past them only bulk"
    )

    def _check_priority(self, texts: int) -> None:
        """Interactive requests are small, so that nobody waits long for another one."""
        if self.priority == "interactive" and texts > MAX_INTERACTIVE_TEXTS:
            raise ValueError(f"priority interactive is for up to {MAX_INTERACTIVE_TEXTS} texts, not {texts}; send bulk")

    @model_validator(mode="after")
    def _one_prompt(self) -> "EncodeOptions":
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("fields 'prompt' and 'prompt_name' exclude each other; send one")
        return self


_TOKENS = (
    "instead of a text: the ids that the model reads, special tokens and prompt included, as ml.tokenize returns them; "
    "nothing is added"
)


class EmbedOptions(EncodeOptions):
    normalize: bool | None = Field(None, description="scale each vector to length 1; absent: as the model's entry says")
    encoding_format: EncodingFormat = Field(
        "float32",
        description="base64: of little-endian float32. array: numbers in MessagePack too, as in JSON. "
        f"int8: value * 127 * sqrt(dimensions) / {INT8_RANGE:g}, rounded and clipped to -127..127. "
        "binary: a bit a value, 1 above 0, highest bit first. int8 and binary are for normalised vectors",
    )

    def _check_form(self, name: str, text: object, tokens: object) -> None:
        if text is None and tokens is None:
            raise ValueError(f"field {name!r} is missing; send it, or 'tokens'")
        if text is not None and tokens is not None:
            raise ValueError(f"send either {name!r} or 'tokens'")
        if tokens is not None and (self.prompt is not None or self.prompt_name is not None):
            raise ValueError("fields 'prompt' and 'prompt_name' are for texts: 'tokens' hold theirs already")


class EmbedRequest(EmbedOptions):
    """Either `text` or `tokens`."""

    text: Text | None = Field(None, description="a text that is not blank and has no NUL character")
    tokens: TokenIds | None = Field(None, description=_TOKENS)

    @property
    def content(self) -> str | list[int]:
        """The text, or its ids."""
        return self.tokens if self.text is None else self.text  # type: ignore[return-value]  # one of them is given

    @model_validator(mode="after")
    def _one_form(self) -> "EmbedRequest":
        self._check_form("text", self.text, self.tokens)
        return self


class EmbedBatchRequest(EmbedOptions):
    """Either `texts` or `tokens`."""

    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS, fail_fast=True)] | None = Field(
        None, description="texts as in ml.embed"
    )
    tokens: IdLists | None = Field(None, description="a list of ids for each text, as in ml.embed")
    stream: Stream | None = STREAM

    @property
    def contents(self) -> list[str] | list[list[int]]:
        """The texts, or their ids."""
        return self.tokens if self.texts is None else self.texts  # type: ignore[return-value]  # one of them is given

    @model_validator(mode="after")
    def _one_form(self) -> "EmbedBatchRequest":
        self._check_form("texts", self.texts, self.tokens)
        self._check_priority(len(self.contents))
        return self


class Usage(Reply):
    tokens: int = Field(description="tokens the model read, special tokens included, after truncation")


class Served(Reply):
    """The part of every reply that names the model behind it."""

    model: str
    version: str = Field(description="the exact weights and precision that served the request")
    usage: Usage


class Encoded(Reply):
    """The part of every message with vectors that says how to read them."""

    encoding_format: EncodingFormat = Field("float32", description="absent: float32")
    dimensions: int = Field(description="values of a vector, in any encoding")


class EmbedReply(Encoded, Served):
    embedding: Vector = Field(repr=False)
    truncated: bool = Field(False, description="whether the text was cut to the model's length")


class EmbedBatchReply(Encoded, Served):
    embeddings: list[Vector] = Field(repr=False)
    truncated: list[int] = Field(default_factory=list, description="indices of the texts that were cut")


class EmbedChunk(Encoded):
    """One frame of a streamed batch: the vectors of texts[index : index + len(embeddings)]."""

    seq: int = 0
    version: str = Field(description="the exact weights and precision that served the texts")
    index: int
    embeddings: list[Vector] = Field(repr=False)
    truncated: list[int] = Field(default_factory=list, description="indices of the texts that were cut")


class EmbedDone(Served):
    """The last frame of a streamed batch."""

    seq: int = 0
    count: int
    dimensions: int


class SimilarityRequest(EncodeOptions):
    """Either `a` and `b`, or `query` and `candidates` with an optional `top_k`."""

    a: Text | None = Field(None, description="a text to compare with `b`")
    b: Text | None = Field(None, description="the other text")
    query: Text | None = Field(None, description="a text to rank the candidates by")
    candidates: Annotated[list[Text], Field(min_length=1, max_length=MAX_CANDIDATES)] | None = Field(
        None, description="texts to rank"
    )
    top_k: int | None = Field(None, ge=1, le=MAX_CANDIDATES, description="keep only the best; absent: all")

    @model_validator(mode="after")
    def _one_form(self) -> "SimilarityRequest":
        pair = (self.a is not None, self.b is not None)
        ranking = (self.query is not None, self.candidates is not None)
        if all(pair) and not any(ranking) and self.top_k is None:
            return self
        if all(ranking) and not any(pair):
            self._check_priority(1 + len(self.candidates or []))
            return self
        raise ValueError("send either 'a' and 'b', or 'query' and 'candidates' (and 'top_k' if wanted)")


class SimilarityScore(Served):
    score: float = Field(description="cosine, -1 to 1")
    truncated: bool = False


class Ranked(Reply):
    index: int = Field(description="place in the request's candidates")
    score: float = Field(description="cosine, -1 to 1")


class SimilarityRanking(Served):
    results: list[Ranked] = Field(description="best first; equal scores in the order of the request")
    truncated: bool = False


SimilarityReply: TypeAlias = SimilarityScore | SimilarityRanking
