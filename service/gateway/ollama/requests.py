"""The requests of Ollama's API. Bounds are those of the wire contract, whose messages they become."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from subjects.generate import MAX_TOKENS
from subjects.message import Message
from subjects.names import ChatRole

from ..openai.fill import gap_in
from ..openai.requests import MAX_INPUTS

LATEST = ":latest"
_SAME = ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty", "stop")
"""OllamaOptions with the same name and meaning in the wire contract."""


def _without_tag(model: Any) -> Any:
    return model.removesuffix(LATEST) if isinstance(model, str) else model


Model = Annotated[str, BeforeValidator(_without_tag)]


class OllamaOptions(Message):
    num_predict: int | None = Field(
        None,
        ge=-2,
        le=MAX_TOKENS,
        description="tokens at most; absent or below 0: as many as a request gets that names no `max_tokens`",
    )
    temperature: float | None = Field(None, description="absent, as for the other samplers: as the model says")
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = Field(None, description="any whole number; modulo 2^64")
    stop: str | list[str] | None = Field(None, description="strings that end the text and are not part of it")

    def told(self) -> dict[str, Any]:
        """The options of a request of the wire contract."""
        told = {name: value for name in _SAME if (value := getattr(self, name)) is not None}
        if self.repeat_penalty is not None:
            told["repetition_penalty"] = self.repeat_penalty
        if self.seed is not None:
            told["seed"] = self.seed % 2**64
        if self.num_predict is not None and self.num_predict >= 0:
            told["max_tokens"] = self.num_predict or 1  # nothing is generated without a token
        return told


class _Request(Message):
    model: Model
    options: OllamaOptions = Field(OllamaOptions(), description="of no effect on vectors")
    keep_alive: int | float | str | None = Field(
        None, description="has no effect: a worker keeps models while there is memory; 0 without a text is refused"
    )


class _Generated(_Request):
    """What both requests for text have."""

    stream: bool = Field(True, description="send the text as it is generated, a line of JSON for each piece")

    @property
    def unloads(self) -> bool:
        """Whether it asks, without a text, that the model leaves memory."""
        return self.keep_alive in (0, "0", "0s")


class OllamaGenerateRequest(_Generated):
    prompt: str = Field("", description="empty, without `suffix`: load the model")
    suffix: str = Field("", description="the text behind the gap to fill")
    system: str = Field("", description="a message of the system before the prompt, for models with a chat template")
    raw: bool = Field(False, description="continue the prompt as it is; else it is a chat, for models that chat")

    @property
    def only_loads(self) -> bool:
        return not (self.prompt or self.suffix)

    @property
    def may_chat(self) -> bool:
        """Whether the prompt is a chat for a model that chats."""
        return not (self.raw or self.only_loads or self._gap)

    @property
    def _gap(self) -> tuple[str, str] | None:
        return (self.prompt, self.suffix) if self.suffix else gap_in(self.prompt)

    def form(self, chats: bool) -> dict[str, Any]:
        """What is completed. chats: whether the prompt is a chat."""
        if gap := self._gap:
            return {"prefix": gap[0], "suffix": gap[1]}
        if not chats:
            return {"prompt": self.prompt}
        before = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": [*before, {"role": "user", "content": self.prompt}]}


class OllamaMessage(Message):
    role: ChatRole
    content: str = ""


class OllamaChatRequest(_Generated):
    messages: list[OllamaMessage] = Field([], description="empty: load the model")

    @property
    def only_loads(self) -> bool:
        return not self.messages

    def form(self) -> dict[str, Any]:
        """The chat."""
        return {"messages": [message.model_dump() for message in self.messages]}


def _as_list(inputs: Any) -> Any:
    return [inputs] if isinstance(inputs, str) else inputs


class OllamaEmbedRequest(_Request):
    input: Annotated[
        list[str], Field(max_length=MAX_INPUTS), BeforeValidator(_as_list, json_schema_input_type=str | list[str])
    ] = Field(description="a text or several")
    truncate: bool = Field(True, description="cut texts past the model's length; false: refuse them")
    dimensions: int | None = Field(None, description="cut each vector to its first values and scale it to length 1")


class OllamaEmbeddingsRequest(_Request):
    """The older one, for one text."""

    prompt: str


class OllamaShowRequest(Message):
    model: Model | None = None
    name: Model | None = Field(None, description="the same under its older name")
