"""`ml.schema`: what a request and a reply on each subject hold, as JSON Schema."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from .message import Message, Reply


class SchemaRequest(Message):
    subject: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        None, description="only of this subject; absent: of all"
    )


class SubjectSchema(Reply):
    """JSON Schemas of a request and of its one reply, as they are in JSON; frames have no schema here."""

    request: dict[str, Any]
    reply: dict[str, Any]


class SchemaReply(Reply):
    schemas: dict[str, SubjectSchema] = Field(description="by subject; `.*` stands for a worker's id")
