"""What messages of every subject share: the bases of requests and replies, texts, model ids, `stream`."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MAX_TEXT_CHARS = 1_000_000


def _true_false_or_auto(stream: Any) -> Any:
    if isinstance(stream, bool) or stream in (None, "auto"):
        return stream
    raise ValueError('send true, false or "auto"')


Stream: TypeAlias = Annotated[bool | Literal["auto"], BeforeValidator(_true_false_or_auto)]
"""The same values as in the header Ml-Stream."""
STREAM = Field(None, description="the same as the header Ml-Stream; if both are given they must agree")


def _check_text(text: str) -> str:
    if not text or text.isspace():
        raise ValueError("the text is empty or blank; send at least one visible character")
    if "\0" in text:
        raise ValueError("the text holds a NUL character (U+0000); remove it or decode the data first")
    return text


Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS), AfterValidator(_check_text)]
Token = Annotated[str, StringConstraints(min_length=1, max_length=64)]


MAX_TOKEN_ID = 2**31 - 1
MAX_IDS = 262_144
"""Of one text: as many values as JSON may hold."""
MAX_ID_LISTS = 2048
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
AnyIds = Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_IDS, fail_fast=True)]
"""A text as token ids. The field is called `tokens` on every subject: replies count `prompt_tokens`."""
IdLists = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_ID_LISTS, fail_fast=True)]


class Message(BaseModel):
    """Base of requests: unknown fields and near-miss types are refused by name, and numbers are finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Reply(BaseModel):
    """Base of replies. Unknown fields are ignored, so that a newer worker can add some."""

    model_config = ConfigDict(extra="ignore", frozen=True, arbitrary_types_allowed=True)


class PingFrame(Reply):
    """The worker is still working and has nothing to send yet."""

    seq: int = 0
