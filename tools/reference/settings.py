"""The settings: a table for each group, from the model that reads them and the options of `mlbus serve`."""

from collections.abc import Iterator

import typer
from pydantic import BaseModel

from models.catalogue import ModelSpec
from service.cli.main import app
from service.settings import Settings

from .markdown import bounds, code, escaped, kind, table


def settings() -> str:
    """A section for each group of settings."""
    return "\n".join(_groups(Settings, ""))


def catalogue() -> str:
    """The fields of a catalogue entry."""
    return _table(ModelSpec, "", {"id"})


def flags() -> dict[str, str]:
    """The options of `mlbus serve` by the setting that they give."""
    serve = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    return {{"model": "models"}.get(option.name, option.name): option.opts[0] for option in serve.params}


def _groups(group: type[BaseModel], name: str) -> Iterator[str]:
    inner = {field: info.default for field, info in group.model_fields.items() if isinstance(info.default, BaseModel)}
    heading, meaning = (f"`{name}`", f"{group.__doc__}\n\n") if name else ("General", "")
    yield f"## {heading}\n\n{meaning}{_table(group, name, set(inner))}"
    for field, default in inner.items():
        yield from _groups(type(default), f"{name}.{field}" if name else field)


def _table(group: type[BaseModel], name: str, inner: set[str]) -> str:
    schema, given = group.model_json_schema(), flags() if group is Settings else {}
    rows = []
    for field, info in group.model_fields.items():
        if field in inner:
            continue
        described = schema["properties"][field]
        value = info.get_default(call_default_factory=True)
        default = "required" if info.is_required() else code(value)
        rows.append(
            (
                f"`{name}.{field}`" if name else f"`{field}`",
                "table" if isinstance(value, BaseModel) else escaped(kind(described)),
                "" if value is None or isinstance(value, BaseModel) else default,
                escaped(bounds(described)),
                f"`{given[field]}`" if field in given else "",
                escaped(info.description or ""),
            )
        )
    return table(("setting", "type", "default", "range", "flag", "meaning"), rows)
