"""`ml.schema`: what a request and a reply on each subject hold, as JSON Schema."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from .embed import Message, Reply


class SchemaRequest(Message):
    subject: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = Field(
        None, description="only of this subject; absent: of all"
    )


class SubjectSchema(Reply):
    """JSON Schemas of the bodies, in JSON. A reply that comes as frames has its frames among the forms of `reply`."""

    request: dict[str, Any]
    reply: dict[str, Any]


class SchemaReply(Reply):
    schemas: dict[str, SubjectSchema] = Field(description="by subject; `.*` stands for a worker's id")
