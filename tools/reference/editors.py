"""The APIs that editors speak: the fields of each path, and those that are ignored or must ask for nothing."""

from collections.abc import Callable

from pydantic import BaseModel

from service.gateway.editors import LLAMACPP, OLLAMA, TEI, Api, Path

from .markdown import Schema, code, table
from .messages import request_fields, schema_of


def _page(api: Api) -> str:
    """The fields without effect, a section for each path with a request, and one for each object inside of those."""
    inner: dict[str, Schema] = {}
    sections = [_section(path, told, inner) for path, told in api.paths.items()]
    objects = [f"#### {name}\n\n{request_fields(schema)}" for name, schema in sorted(inner.items())]
    return "\n".join([*_without_effect(api), *sections, *objects])


def _section(path: str, told: Path, inner: dict[str, Schema]) -> str:
    if told.request is None:
        return f"### GET {path}\n\n{told.summary}.\n"
    requests = [told.request] if isinstance(told.request, type) else told.request.__args__
    fields = [request_fields(schema_of(request, inner)) for request in requests if issubclass(request, BaseModel)]
    return f"### POST {path}\n\n{told.summary}.\n\n" + "\nOr:\n\n".join(fields)


def _without_effect(api: Api) -> list[str]:
    if not api.ignored:
        return []
    ignored = table(("ignored", "elsewhere it"), [(f"`{name}`", meaning) for name, meaning in api.ignored.items()])
    values = [(f"`{name}`", ", ".join(code(value) for value in accepted)) for name, accepted in api.neutral.items()]
    return [ignored, table(("refused", "except with"), values)]


PARTS: dict[str, Callable[[], str]] = {
    "llamacpp": lambda: _page(LLAMACPP),
    "ollama": lambda: _page(OLLAMA),
    "tei": lambda: _page(TEI),
}
