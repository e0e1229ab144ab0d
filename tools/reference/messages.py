"""The subjects: how each is served, the fields of its request, its reply and its frames."""

from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter

from subjects.routes import ROUTES, Route

from .markdown import Schema, bounds, code, escaped, kind, literal, table, without_null


def subjects() -> str:
    """A section for each subject, then one for each object inside of messages."""
    sent: dict[str, Schema] = {}
    received: dict[str, Schema] = {}
    sections = ["".join(_section(route, sent, received)) for route in ROUTES.values()]
    objects = {name: _fields(schema) for name, schema in received.items()}
    objects |= {name: request_fields(schema) for name, schema in sent.items()}
    inner = [f"### {name}\n\n{fields}" for name, fields in sorted(objects.items())]
    return "\n".join([*sections, "## Objects inside messages\n", *inner])


def _section(route: Route, sent: dict[str, Schema], received: dict[str, Schema]) -> Iterator[str]:
    """sent, received: take in what the messages refer to, by its name."""
    yield f"## {route.subject}\n\n"
    yield from (f"- {fact}\n" for fact in _facts(route))
    yield f"\n**Request**\n\n{request_fields(schema_of(route.request, sent))}"
    if not route.lasting:
        replies = [_resolved(reply, received) for reply in without_null(schema_of(route.reply, received))]
        for reply in replies:
            form = f" `{reply['title']}`" if len(replies) > 1 else ""
            yield f"\n**Reply**{form}\n\n{_fields(reply)}"
    for event, frame in route.frames.items():
        yield f"\n**Frame** `{event}`\n\n{_fields(schema_of(frame, received))}"


def _facts(route: Route) -> Iterator[str]:
    yield f"Role: `{route.role}`"
    who = "every worker" if route.every_worker else "one worker of the queue group"
    yield f"Answered by: {who}" + (f"; on `{route.subject}.<worker id>` by that worker" if route.by_worker else "")
    text = f"the field `{route.text_field}`" if route.text_field else "no"
    yield f"Plain text: {text}" + ("; the reply is text too" if route.has_text_reply else "")
    yield "Streams: " + ("always" if route.lasting else "with `Ml-Stream`" if route.frames else "no")


def schema_of(message: Any, inner: dict[str, Schema]) -> Schema:
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


def request_fields(schema: Schema) -> str:
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
