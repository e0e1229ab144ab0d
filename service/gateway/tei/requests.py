"""The requests of text-embeddings-inference. Bounds are those of the wire contract."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from subjects.embed import MAX_CANDIDATES
from subjects.message import Message
from subjects.names import Truncate

from ..openai.requests import MAX_INPUTS


def _as_list(inputs: Any) -> Any:
    """One text, or the token ids of one, as a list of one."""
    one = isinstance(inputs, str) or (isinstance(inputs, list) and inputs and isinstance(inputs[0], int))
    return [inputs] if one else inputs


class TeiParameters(Message):
    """What requests to embed have."""

    truncate: bool = Field(True, description="cut texts past the model's length; false: refuse them")
    truncation_direction: Literal["Right", "Left", "right", "left"] = Field("Right", description="the end that is cut")
    prompt_name: str | None = Field(None, description="one of the model's own prompts, by name")

    @property
    def end(self) -> Truncate:
        """As in the wire contract."""
        if not self.truncate:
            return "error"
        return "end" if self.truncation_direction.lower() == "right" else "start"


class TeiEmbedRequest(TeiParameters):
    inputs: Annotated[
        list[str] | list[list[int]],
        Field(max_length=MAX_INPUTS),
        BeforeValidator(_as_list, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ] = Field(description="a text or its token ids, or a list of these")
    model: str | None = Field(None, description="not of that API; absent: the worker's default")
    normalize: bool = Field(True, description="scale each vector to length 1")
    dimensions: int | None = Field(None, description="cut each vector to its first values and scale it to length 1")


class TeiSentences(Message):
    source_sentence: str
    sentences: Annotated[list[str], Field(min_length=1, max_length=MAX_CANDIDATES)]


class TeiSimilarityRequest(Message):
    inputs: TeiSentences
    parameters: TeiParameters = TeiParameters()
    model: str | None = Field(None, description="not of that API; absent: the worker's default")


class TeiTokenizeRequest(Message):
    inputs: Annotated[
        list[str],
        Field(min_length=1, max_length=MAX_INPUTS),
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    ] = Field(description="a text or several")
    add_special_tokens: bool = True
    prompt_name: str | None = Field(None, description="one of the model's own prompts, by name")
    model: str | None = Field(None, description="not of that API; absent: the worker's default to embed")
