"""The requests of OpenAI's API. Bounds are those of the wire contract, whose messages they become."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from subjects.generate import MAX_PROMPTS
from subjects.generate_fields import Content
from subjects.message import Message, Text, TokenIds
from subjects.names import ChatRole

MAX_INPUTS = 2048
"""Of one request to embed, as at OpenAI: the reply is one body."""
DEFAULT_MAX_TOKENS = 16
"""Of /v1/completions, as at OpenAI."""
_SAME = (
    *("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "n", "stop"),
)
"""Fields with the same name and meaning in the wire contract."""


def _as_list(value: Any) -> Any:
    """One text, or the ids of one, as a list of one."""
    ids_of_one = isinstance(value, list) and bool(value) and isinstance(value[0], int)
    return [value] if ids_of_one or isinstance(value, str) else value


def _kind(value: Any) -> str:
    return "ids" if isinstance(value, list) and value and isinstance(value[0], list) else "texts"


def _texts_or_ids(text: Any, most: int) -> Any:
    """The type of a field that is a text, several, the token ids of one, or those of several."""
    texts = Annotated[list[text], Field(min_length=1, max_length=most, fail_fast=True)]
    ids = Annotated[list[TokenIds], Field(min_length=1, max_length=most, fail_fast=True)]
    return Annotated[
        Annotated[texts, Tag("texts")] | Annotated[ids, Tag("ids")],
        Discriminator(_kind),
        BeforeValidator(_as_list, json_schema_input_type=text | texts | TokenIds | ids),
    ]


class EmbeddingsRequest(Message):
    model: str | None = Field(None, description="absent: the worker's default")
    input: _texts_or_ids(Text, MAX_INPUTS) = Field(description="one text or several, or their token ids")  # type: ignore[valid-type]
    dimensions: int | None = Field(None, description="cut each vector to its first values and scale it to length 1")
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: of little-endian float32")


class StreamOptions(Message):
    include_usage: bool = Field(False, description="send a last chunk with the numbers of tokens")
    include_obfuscation: Literal[False] = False


class _GenerateRequest(Message):
    """What both requests for text have. top_k, min_p and repetition_penalty are not OpenAI's."""

    model: str | None = Field(None, description="absent: the worker's default")
    temperature: float | None = Field(None, description="absent, as for the other samplers: as the model says")
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = Field(None, description="token id -> what is added to its logit")
    seed: int | None = Field(None, description="any whole number; modulo 2^64")
    n: int = Field(1, description="completions of each prompt")
    stop: str | list[str] | None = Field(None, description="strings that end the text and are not part of it")
    stream: bool = Field(False, description="send the text as it is generated, as server-sent events")
    stream_options: StreamOptions | None = None

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def options(self) -> dict[str, Any]:
        """The options of a request of the wire contract."""
        same = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        return same if self.seed is None else {**same, "seed": self.seed % 2**64}


class CompletionRequest(_GenerateRequest):
    prompt: _texts_or_ids(str, MAX_PROMPTS) = Field(  # type: ignore[valid-type]
        description="one text or several, or their token ids; a text with a model's tokens to fill in the middle is "
        "taken for what they mean"
    )
    suffix: str | None = Field(None, description="the text behind the gap to fill; for one prompt")
    max_tokens: int = DEFAULT_MAX_TOKENS
    echo: bool = Field(False, description="begin the text with the prompt")
    logprobs: int | None = Field(None, description="log-probabilities, and this many alternatives of each token")

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        return self.prompt  # type: ignore[no-any-return]

    @model_validator(mode="after")
    def _one_gap(self) -> "CompletionRequest":
        if self.suffix and not (len(self.prompts) == 1 and isinstance(self.prompts[0], str)):
            raise ValueError("field 'suffix' is for one prompt, a text")
        return self

    def options(self) -> dict[str, Any]:
        own: dict[str, Any] = {"max_tokens": self.max_tokens, "echo": self.echo}
        return super().options() | own | ({} if self.logprobs is None else {"logprobs": self.logprobs})


class ChatTurn(Message):
    role: ChatRole
    content: Content = Field(description="a text, or a list of text parts")
    tool_call_id: str | None = Field(None, description="of the role tool; not part of what the model reads")

    @model_validator(mode="after")
    def _tool_only(self) -> "ChatTurn":
        if self.tool_call_id is not None and self.role != "tool":
            raise ValueError("field 'tool_call_id' is for the role tool")
        return self


class ChatRequest(_GenerateRequest):
    messages: list[ChatTurn]
    max_completion_tokens: int | None = Field(None, description="absent: as in the wire contract")
    max_tokens: int | None = Field(None, description="the same under its older name")
    logprobs: bool = False
    top_logprobs: int | None = Field(None, description="alternatives of each token; with logprobs")

    @model_validator(mode="after")
    def _go_together(self) -> "ChatRequest":
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("field 'max_tokens' and 'max_completion_tokens' differ; send one")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("field 'top_logprobs' needs 'logprobs'")
        return self

    def options(self) -> dict[str, Any]:
        most = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        own: dict[str, Any] = {} if most is None else {"max_tokens": most}
        return super().options() | own | ({"logprobs": self.top_logprobs or 0} if self.logprobs else {})

    def turns(self) -> list[dict[str, str]]:
        """The messages of a request of the wire contract."""
        return [{"role": turn.role, "content": turn.content} for turn in self.messages]
