"""`ml.schema`: the JSON Schemas of the routes, made at the first request."""

import functools

from pydantic import TypeAdapter

from subjects import names
from subjects.errors import Busy, NotFound
from subjects.routes import ROUTES
from subjects.schema import SchemaReply, SchemaRequest, SubjectSchema

from ..admission import RateLimit
from ..endpoint.call import Call
from ..endpoint.route import Handler

ANSWERS_S = 50
"""Replies a second; all schemas take a millisecond to encode."""


class SchemaHandlers:
    def __init__(self) -> None:
        self._rate = RateLimit(ANSWERS_S)

    def handlers(self) -> dict[str, Handler]:
        return {names.SCHEMA: Handler(self.schema)}

    async def schema(self, request: SchemaRequest, _call: Call) -> SchemaReply:
        if not self._rate.allows():
            raise Busy("schemas are asked for too often; keep what you have", retry_after_ms=1000)
        known = _schemas()
        if request.subject is None:
            return known
        for subject in (request.subject, f"{request.subject.rpartition('.')[0]}.*"):
            if found := known.schemas.get(subject):
                return SchemaReply(schemas={subject: found})
        raise NotFound(f"nothing is served on {request.subject!r}; there are {', '.join(known.schemas)}")


@functools.cache
def _schemas() -> SchemaReply:
    """By subject; `*` stands for a worker's id."""
    schemas = {}
    for subject, route in ROUTES.items():
        schemas[subject] = SubjectSchema(
            request=route.request.model_json_schema(), reply=TypeAdapter(route.reply).json_schema()
        )
        if route.by_worker:
            schemas[f"{subject}.*"] = schemas[subject]
    return SchemaReply(schemas=schemas)
