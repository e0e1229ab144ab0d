"""The subjects: how each is served, the fields of its request, its reply and its frames."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from service.endpoint.endpoint import Route
from service.handlers.embed import EmbedHandlers
from service.handlers.finetune import FinetuneHandlers
from service.handlers.generate import GenerateHandlers
from service.handlers.models import ModelHandlers
from service.handlers.promote import PromoteHandlers
from service.handlers.schema import SchemaHandlers
from service.handlers.similarity import SimilarityHandlers
from subjects import names
from subjects.embed import EmbedChunk, EmbedDone
from subjects.generate import GenerateDone, PingFrame, TokenFrame
from subjects.jobs import JobFrame

from .markdown import Schema, bounds, code, escaped, kind, table, without_null

FRAMES: Mapping[str, Mapping[str, type[BaseModel]]] = {
    names.EMBED_BATCH: {"chunk": EmbedChunk, "ping": PingFrame, "done": EmbedDone},
    names.GENERATE: {"token": TokenFrame, "ping": PingFrame, "done": GenerateDone},
    names.GENERATE_BATCH: {"token": TokenFrame, "ping": PingFrame, "done": GenerateDone},
    names.JOBS_WATCH: {"job": JobFrame, "ping": PingFrame, "done": JobFrame},
}
"""By subject: the frames of a stream by their event; `error` aside, which every stream may end with."""

_CONF = Path(__file__).parents[2] / "nats-server.conf"
_NOBODY: Any = None
"""In the place of what a handler calls: only its routes are asked for."""
_WORKER = "*"


def routes() -> list[Route]:
    """Every route of a worker."""
    families = [
        EmbedHandlers(_NOBODY),
        SimilarityHandlers(_NOBODY),
        GenerateHandlers(_NOBODY, _NOBODY),
        FinetuneHandlers(_NOBODY, _NOBODY, _NOBODY),
        ModelHandlers(_NOBODY, _WORKER, _NOBODY, _NOBODY),
        PromoteHandlers(_NOBODY, _WORKER),
    ]
    made = [route for family in families for route in family.routes()]
    return [*made, SchemaHandlers(made, _WORKER).route()]


def for_clients() -> frozenset[str]:
    """The subjects that the role `client` may publish to."""
    granted = re.search(r"^CLIENT_PUBLISH: \[(.*?)^\]", _CONF.read_text("utf-8"), re.M | re.S)
    return frozenset(re.findall(r'"([^"]+)"', granted[1] if granted else ""))


def subjects() -> str:
    """A section for each subject, then one for each message inside of others."""
    made = [route for route in routes() if not route.subject.endswith(f".{_WORKER}")]
    by_worker = {route.subject.removesuffix(f".{_WORKER}") for route in routes() if route not in made}
    granted = for_clients()
    inner: dict[str, Schema] = {}
    sections = ["".join(_section(route, route.subject in by_worker, route.subject in granted, inner)) for route in made]
    nested = [f"### {name}\n\n{_described(schema)}{_fields(schema)}" for name, schema in sorted(inner.items())]
    return "\n".join([*sections, "## Objects inside messages\n", *nested])


def _section(route: Route, by_worker: bool, granted: bool, inner: dict[str, Schema]) -> Iterator[str]:
    yield f"## {route.subject}\n\n"
    yield from (f"- {fact}\n" for fact in _facts(route, by_worker, granted))
    request = _schema(route.request, inner)
    yield f"\n**Request**\n\n{_described(request)}{_request_fields(request)}\n"
    if route.handle is not None or route.subject in (names.EMBED_BATCH, names.GENERATE, names.GENERATE_BATCH):
        replies = [_resolved(reply, inner) for reply in without_null(_schema(route.reply, inner))]
        for reply in replies:
            form = f" `{reply['title']}`" if len(replies) > 1 else ""
            yield f"**Reply**{form}\n\n{_described(reply)}{_fields(reply)}\n"
    for event, frame in FRAMES.get(route.subject, {}).items():
        yield f"**Frame** `{event}`\n\n{_described(schema := _schema(frame, inner))}{_fields(schema)}\n"


def _facts(route: Route, by_worker: bool, granted: bool) -> Iterator[str]:
    yield f"Role: {'`client`' if granted else '`admin`'}"
    yield "Answered by: " + (
        ("one worker of the queue group" if route.queue else "every worker")
        + (f"; on `{route.subject}.<worker id>` by that worker alone" if by_worker else "")
    )
    yield f"Plain text: the field `{route.text_field}`" if route.text_field else "Plain text: no"
    if route.stream is None:
        yield "Streams: no"
    else:
        yield "Streams: always" if route.lasting else "Streams: with `Ml-Stream`"


def _schema(message: Any, inner: dict[str, Schema]) -> Schema:
    """The message's JSON Schema; what it refers to goes to `inner` by its name."""
    schema: dict[str, Any] = TypeAdapter(message).json_schema()
    inner |= schema.pop("$defs", {})
    return schema


def _resolved(schema: Schema, inner: dict[str, Schema]) -> Schema:
    """The schema itself where it is a reference, taken out of `inner`: it is no message inside of others."""
    return inner.pop(schema["$ref"].rpartition("/")[2]) if "$ref" in schema else schema


def _described(schema: Schema) -> str:
    return f"{' '.join(text.split())}\n\n" if (text := schema.get("description", "")) else ""


def _request_fields(schema: Schema) -> str:
    required = schema.get("required", ())
    return table(
        ("field", "type", "default", "range", "meaning"),
        [
            (
                f"`{name}`",
                escaped(kind(field)),
                "required" if name in required else code(field["default"]) if field.get("default") is not None else "",
                escaped(bounds(field)),
                escaped(field.get("description", "")),
            )
            for name, field in schema["properties"].items()
        ],
    )


def _fields(schema: Schema) -> str:
    return table(
        ("field", "type", "meaning"),
        [
            (f"`{name}`", escaped(kind(field)), escaped(field.get("description", "")))
            for name, field in schema["properties"].items()
        ],
    )
