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

from .markdown import Schema, bounds, code, escaped, kind, literal, table, without_null

FRAMES: Mapping[str, Mapping[str, type[BaseModel]]] = {
    names.EMBED_BATCH: {"chunk": EmbedChunk, "ping": PingFrame, "done": EmbedDone},
    names.GENERATE: {"token": TokenFrame, "ping": PingFrame, "done": GenerateDone},
    names.GENERATE_BATCH: {"token": TokenFrame, "ping": PingFrame, "done": GenerateDone},
    names.JOBS_WATCH: {"job": JobFrame, "ping": PingFrame, "done": JobFrame},
}
"""By subject: the frames of a stream by their event; `error` aside, which every stream may end with."""

_CONF = Path(__file__).parents[2] / "nats-server.conf"
_UNUSED: Any = None
"""In the place of what a handler calls: only its routes are asked for."""
_WORKER = "*"


def routes() -> list[Route]:
    """Every route of a worker."""
    families = [
        EmbedHandlers(_UNUSED),
        SimilarityHandlers(_UNUSED),
        GenerateHandlers(_UNUSED, _UNUSED),
        FinetuneHandlers(_UNUSED, _UNUSED, _UNUSED),
        ModelHandlers(_UNUSED, _WORKER, _UNUSED, _UNUSED),
        PromoteHandlers(_UNUSED, _WORKER),
    ]
    made = [route for family in families for route in family.routes()]
    return [*made, SchemaHandlers(made, _WORKER).route()]


def for_clients() -> frozenset[str]:
    """The subjects that the role `client` may publish to."""
    granted = re.search(r"^CLIENT_PUBLISH: \[(.*?)^\]", _CONF.read_text("utf-8"), re.M | re.S)
    return frozenset(re.findall(r'"([^"]+)"', granted[1] if granted else ""))


def subjects() -> str:
    """A section for each subject, then one for each object inside of messages."""
    served = {route.subject: route for route in routes()}
    granted = for_clients()
    sent: dict[str, Schema] = {}
    received: dict[str, Schema] = {}
    sections = [
        "".join(_section(route, f"{subject}.{_WORKER}" in served, subject in granted, sent, received))
        for subject, route in served.items()
        if not subject.endswith(f".{_WORKER}")
    ]
    objects = {name: _fields(schema) for name, schema in received.items()}
    objects |= {name: _request_fields(schema) for name, schema in sent.items()}
    inner = [f"### {name}\n\n{fields}" for name, fields in sorted(objects.items())]
    return "\n".join([*sections, "## Objects inside messages\n", *inner])


def _section(
    route: Route, by_worker: bool, granted: bool, sent: dict[str, Schema], received: dict[str, Schema]
) -> Iterator[str]:
    """sent, received: take in what the messages refer to, by its name."""
    yield f"## {route.subject}\n\n"
    yield from (f"- {fact}\n" for fact in _facts(route, by_worker, granted))
    yield f"\n**Request**\n\n{_request_fields(_schema(route.request, sent))}"
    if not route.lasting:
        replies = [_resolved(reply, received) for reply in without_null(_schema(route.reply, received))]
        for reply in replies:
            form = f" `{reply['title']}`" if len(replies) > 1 else ""
            yield f"\n**Reply**{form}\n\n{_fields(reply)}"
    for event, frame in FRAMES.get(route.subject, {}).items():
        yield f"\n**Frame** `{event}`\n\n{_fields(_schema(frame, received))}"


def _facts(route: Route, by_worker: bool, granted: bool) -> Iterator[str]:
    yield f"Role: `{'client' if granted else 'admin'}`"
    who = "one worker of the queue group" if route.queue else "every worker"
    yield f"Answered by: {who}" + (f"; on `{route.subject}.<worker id>` by that worker alone" if by_worker else "")
    text = f"the field `{route.text_field}`" if route.text_field else "no"
    yield f"Plain text: {text}" + ("; the reply is text too" if route.text else "")
    yield "Streams: " + ("no" if route.stream is None else "always" if route.lasting else "with `Ml-Stream`")


def _schema(message: Any, inner: dict[str, Schema]) -> Schema:
    """The message's JSON Schema, its own fields before inherited ones; what it refers to goes to `inner` by name."""
    schema: dict[str, Any] = TypeAdapter(message).json_schema()
    inner |= schema.pop("$defs", {})
    if fields := schema.get("properties"):
        own = [name for name in message.__annotations__ if name in fields]
        schema["properties"] = {name: fields[name] for name in dict.fromkeys([*own, *fields])}
    return schema


def _resolved(schema: Schema, inner: dict[str, Schema]) -> Schema:
    """The schema itself where it is a reference, taken out of `inner`: it is no object inside of a message."""
    return inner.pop(schema["$ref"].rpartition("/")[2]) if "$ref" in schema else schema


def _described(schema: Schema) -> str:
    return f"{literal(' '.join(text.split()))}\n\n" if (text := schema.get("description", "")) else ""


def _request_fields(schema: Schema) -> str:
    required = schema.get("required", ())
    return _described(schema) + table(
        ("field", "type", "default", "range", "meaning"),
        [
            (
                f"`{name}`",
                escaped(kind(field)),
                "required" if name in required else _default(field),
                escaped(bounds(field)),
                escaped(field.get("description", "")),
            )
            for name, field in schema["properties"].items()
        ],
    )


def _default(field: Schema) -> str:
    return "" if field.get("default") is None or "$ref" in field else code(field["default"])


def _fields(schema: Schema) -> str:
    return _described(schema) + table(
        ("field", "type", "meaning"),
        [
            (f"`{name}`", escaped(kind(field)), escaped(field.get("description", "")))
            for name, field in schema["properties"].items()
        ],
    )
