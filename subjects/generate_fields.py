"""The types of a generation request's fields, with their bounds."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints

from .message import MAX_TEXT_CHARS, Message, TokenId
from .names import ChatRole

MAX_MESSAGES = 256
MAX_CONTEXT_FILES = 256
MAX_STOPS = 16
MAX_BIASES = 1024

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,9}")


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("the text holds a NUL character (U+0000); remove it or decode the data first")
    return text


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _whole_keys(biases: Any) -> Any:
    """Token ids as keys: in JSON all keys are strings."""
    if not isinstance(biases, Mapping):
        return biases
    return {_token_id(key): bias for key, bias in biases.items()}


def _token_id(key: Any) -> Any:
    if not isinstance(key, str):
        return key
    if not _DECIMAL.fullmatch(key):
        raise ValueError(f"its keys are token ids, as decimal numbers, not {key[:40]!r}")
    return int(key)


def _joined(content: Any) -> Any:
    """The text of a message whose content is a list of parts, joined by line breaks."""
    if not isinstance(content, list):
        return content
    for place, part in enumerate(content):
        if not (isinstance(part, dict) and part.keys() == {"type", "text"} and part["type"] == "text"):
            raise ValueError(f"part {place} is not {{'type': 'text', 'text': ...}}; nothing else is read here")
        if not isinstance(part["text"], str):
            raise ValueError(f"the text of part {place} is not a string")
    return "\n".join(part["text"] for part in content)


def _one_line(name: str) -> str:
    if not name.isprintable():
        raise ValueError("it holds a line break or a control character")
    return name


class TextPart(BaseModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: str


Name = Annotated[str, StringConstraints(min_length=1, max_length=1024), AfterValidator(_one_line)]
Part = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS), AfterValidator(_without_nul)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS), AfterValidator(_without_nul)]


class ContextFile(Message):
    """A file of the repository, or a part of one."""

    path: Name = Field(description="as in the repository, such as `src/util.py`")
    text: Part


Content = Annotated[Part, BeforeValidator(_joined, json_schema_input_type=Part | list[TextPart])]
Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[TokenId, Bias], Field(max_length=MAX_BIASES), BeforeValidator(_whole_keys)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = Annotated[
    list[StopString],
    Field(max_length=MAX_STOPS),
    BeforeValidator(
        _as_list, json_schema_input_type=Annotated[list[StopString], Field(max_length=MAX_STOPS)] | StopString
    ),
]
StopTokenIds = Annotated[list[TokenId], Field(max_length=MAX_STOPS)]


class ChatMessage(Message):
    role: ChatRole
    content: Content = Field(description="may be empty; a list of text parts is joined by line breaks")


Chat = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
Context = Annotated[list[ContextFile], Field(max_length=MAX_CONTEXT_FILES)]


def check_continues(continue_final: bool, messages: Sequence[ChatMessage] | None) -> None:
    """Raises ValueError if there is no turn to continue."""
    if continue_final and not (messages and messages[-1].role == "assistant"):
        raise ValueError("field 'continue_final' is for 'messages' whose last turn is the assistant's")
