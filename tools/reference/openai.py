"""OpenAI's API: the parameters of each path, and those that are ignored or must ask for nothing."""

from service.gateway.openai.fields import IGNORED, NEUTRAL
from service.gateway.openapi import OPENAI

from .markdown import Schema, code, table
from .messages import request_fields, schema_of


def parameters() -> str:
    """A section for each path, then one for each object inside of the requests."""
    inner: dict[str, Schema] = {}
    sections = [
        f"## POST {path}\n\n{request_fields(schema_of(request, inner))}" for path, (_, request) in OPENAI.items()
    ]
    objects = [f"### {name}\n\n{request_fields(schema)}" for name, schema in sorted(inner.items())]
    return "\n".join([*sections, "## Objects inside requests\n", *objects])


def ignored() -> str:
    """A row for each parameter that is ignored."""
    return table(("parameter", "elsewhere it"), [(f"`{name}`", meaning) for name, meaning in IGNORED.items()])


def neutral() -> str:
    """A row for each parameter that cannot be honoured."""
    return table(
        ("parameter", "accepted values"),
        [(f"`{name}`", ", ".join(code(value) for value in values)) for name, values in NEUTRAL.items()],
    )
