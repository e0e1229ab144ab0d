"""`ml.similarity`: two texts in, their cosine out; or a query and candidates in, the ranking out."""

from typing import Annotated, TypeAlias

from pydantic import Field, model_validator

from .embed import EncodeOptions, Reply, Served, Text

MAX_CANDIDATES = 2048


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
