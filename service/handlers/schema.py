"""`ml.schema`: the JSON Schemas of the routes. They are made once, when somebody asks."""

import functools
from collections.abc import Sequence

from pydantic import TypeAdapter

from subjects import names
from subjects.errors import Busy, NotFound
from subjects.schema import SchemaReply, SchemaRequest, SubjectSchema

from ..endpoint.call import Call
from ..endpoint.endpoint import Route
from ..endpoint.rate import Rate

ANSWERS_S = 50
"""All schemas take a millisecond to encode."""


class SchemaHandlers:
    """routes: what else is served. worker: this worker's id, for which `*` stands in a subject."""

    def __init__(self, routes: Sequence[Route], worker: str) -> None:
        self._routes = [*routes, self.route()]
        self._worker = worker
        self._rate = Rate(ANSWERS_S)

    def route(self) -> Route:
        return Route("schema", names.SCHEMA, SchemaRequest, SchemaReply, self.schema, "subject")

    async def schema(self, request: SchemaRequest, _call: Call) -> SchemaReply:
        if not self._rate.allows():
            raise Busy("schemas are asked for too often; keep what you have", retry_after_ms=1000)
        if request.subject is None:
            return self._all
        for subject in (request.subject, f"{request.subject.rpartition('.')[0]}.*"):
            if found := self._all.schemas.get(subject):
                return SchemaReply(schemas={subject: found})
        raise NotFound(f"nothing is served on {request.subject!r}; there are {', '.join(self._all.schemas)}")

    @functools.cached_property
    def _all(self) -> SchemaReply:
        own = f".{self._worker}"
        return SchemaReply(
            schemas={
                f"{route.subject.removesuffix(own)}.*" if route.subject.endswith(own) else route.subject: SubjectSchema(
                    request=route.request.model_json_schema(), reply=TypeAdapter(route.reply).json_schema()
                )
                for route in self._routes
            }
        )
