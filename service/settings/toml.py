"""Settings as TOML text."""

import json
import re
from typing import Any

from pydantic import BaseModel


def as_toml(settings: BaseModel, prefix: str = "") -> str:
    """The text of a settings file from which the same settings are read.

    Descriptions are comments; a field that is None is commented out.
    """
    lines: list[str] = []
    tables: list[str] = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            tables.append(f"\n# {type(value).__doc__}\n[{prefix}{name}]\n{as_toml(value, f'{prefix}{name}.')}")
            continue
        if isinstance(value, dict):
            tables += _tables(f"{prefix}{name}", value)
            continue
        if field.description:
            lines.append(f"# {field.description}")
        lines.append(f"# {name} =" if value is None else f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n" + "".join(tables)


def _tables(path: str, items: dict[str, Any]) -> list[str]:
    """A table, or one for each item if all of them are tables themselves."""
    if all(isinstance(item, dict) for item in items.values()):
        named = {f"{path}.{_key(key)}": item for key, item in items.items()}
    else:
        named = {path: items}
    return ["\n".join([f"\n[{name}]", *_key_value_lines(table), ""]) for name, table in named.items()]


def _key_value_lines(items: dict[str, Any]) -> list[str]:
    """None is left out: TOML has no null."""
    return [f"{_key(key)} = {_toml(value)}" for key, value in items.items() if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(_key_value_lines(value)) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    # repr writes infinity as TOML does; JSON escapes text as TOML does, except DEL and characters beyond 16 bits.
    return repr(value) if isinstance(value, int | float) else _quoted(str(value))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _quoted(name)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
