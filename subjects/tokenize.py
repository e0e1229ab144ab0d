"""`ml.tokenize` and `ml.detokenize`: texts to the tokens that a model reads, and back."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from .generate_fields import Chat, check_continues
from .message import MAX_ID_LISTS, MAX_TEXT_CHARS, AnyIds, Message, Reply, Token

MAX_TOKENIZED = 65_536
MAX_SHOWN_TOKENS = 524_288
"""Of all texts of a request together, unless only counts are wanted."""

AnyText = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]


def _text_as_list(text: Any) -> Any:
    return [text] if isinstance(text, str) else text


def _ids_as_list(tokens: Any) -> Any:
    """One list of ids as a list of one."""
    return tokens if isinstance(tokens, list) and tokens and isinstance(tokens[0], list) else [tokens]


Texts = Annotated[list[AnyText], Field(min_length=1, max_length=MAX_TOKENIZED, fail_fast=True)]
AnyIdLists = Annotated[list[AnyIds], Field(min_length=1, max_length=MAX_ID_LISTS, fail_fast=True)]


class TokenizeRequest(Message):
    """Either `text` or `messages`."""

    text: Annotated[Texts, BeforeValidator(_text_as_list, json_schema_input_type=AnyText | Texts)] | None = Field(
        None, description="one text or a list; any text, also an empty one"
    )
    messages: Chat | None = Field(
        None, description="a chat, as its model's template writes it, special tokens included"
    )
    continue_final: bool = Field(False, description="for `messages`, as in ml.generate")
    model: Token | None = Field(
        None, description="model id, of any kind; absent: the worker's default for prompts, or for chats"
    )
    add_special_tokens: bool = Field(True, description="put the model's own special tokens around a text")
    task: Token | None = Field(None, description="for models that embed, as in ml.embed; so are the next two")
    prompt_name: Token | None = None
    prompt: Annotated[str, StringConstraints(max_length=4096)] | None = None
    count_only: bool = Field(False, description="return the numbers of tokens alone")

    @model_validator(mode="after")
    def _one_form(self) -> "TokenizeRequest":
        if (self.text is None) == (self.messages is None):
            raise ValueError("send either 'text' or 'messages'")
        check_continues(self.continue_final, self.messages)
        if self.messages is not None and not self.add_special_tokens:
            raise ValueError("field 'add_special_tokens': a chat always has those of its template")
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("fields 'prompt' and 'prompt_name' exclude each other; send one")
        return self


class TokenizedText(Reply):
    """The tokens of one text, in four lists; a chat has no `offsets`."""

    ids: list[int]
    pieces: list[str] = Field(
        description="the text of each token, U+FFFD for a part of a character; of a model that embeds, its name in the "
        "vocabulary, such as `##ing`"
    )
    offsets: list[tuple[int, int]] | None = Field(
        None,
        description="of each token the bytes [start, end) of the text in UTF-8 that it stands for, all bytes of a "
        "character that several share; [0, 0]: it is not in the text",
    )
    special: list[int] = Field(description="places of the special tokens in these lists")


class TokenizeReply(Reply):
    model: str
    version: str = Field(description="the exact weights and precision that are loaded")
    counts: list[int] = Field(description="how many tokens each text has")
    results: list[TokenizedText] | None = Field(None, description="absent with 'count_only'", repr=False)


class DetokenizeRequest(Message):
    tokens: Annotated[AnyIdLists, BeforeValidator(_ids_as_list, json_schema_input_type=AnyIds | AnyIdLists)] = Field(
        description="the token ids of one text, or a list of such lists"
    )
    model: Token | None = Field(None, description="model id, of any kind; absent: the worker's default for prompts")
    skip_special_tokens: bool = Field(True, description="leave special tokens out; false: write their names")


class DetokenizeReply(Reply):
    model: str
    version: str = Field(description="the exact weights and precision that are loaded")
    texts: list[str] = Field(description="in the order of the request", repr=False)
