"""Markdown tables, and what a JSON Schema says in words."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns in which every cell is empty are left out."""
    rows = list(rows)
    kept = [place for place, _ in enumerate(heading) if any(row[place] for row in rows)]
    first, *others = ["| " + " | ".join(row[place] for place in kept) + " |\n" for row in (heading, *rows)]
    return "".join([first, "|---" * len(kept) + "|\n", *others])


def escaped(text: str) -> str:
    """Text as it stands in a cell: on one line, and without what Markdown would read as something else."""
    return literal(" ".join(text.split())).replace("|", "\\|")


def literal(text: str) -> str:
    """Text of which only the code spans are Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [part.replace("*", r"\*").replace("<", "&lt;") for part in parts[::2]]
    return "".join(parts)


def code(value: object) -> str:
    """A value as JSON, set as code."""
    return f"`{json.dumps(value, default=str)}`"


def without_null(schema: Schema) -> list[Schema]:
    """The alternatives of a field, null aside."""
    alternatives = schema.get("anyOf", schema.get("oneOf", [schema]))
    return [alternative for alternative in alternatives if alternative.get("type") != "null"]


def kind(schema: Schema) -> str:
    """What a field holds: `string`, `list of integer`, the values of an enumeration, a link to a message."""
    return " or ".join(dict.fromkeys(map(_kind, without_null(schema))))


def _kind(schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in schema:
        return code(schema["const"])
    if "enum" in schema:
        return ", ".join(map(code, schema["enum"]))
    if "anyOf" in schema:
        return kind(schema)
    match schema.get("type"):
        case "array":
            return f"list of {kind(schema.get('items', {}))}"
        case "object":
            values = schema.get("additionalProperties")
            return f"map to {kind(values)}" if isinstance(values, dict) else "map"
        case name:
            return {"date-time": "time"}.get(schema.get("format", ""), name or "any")


def bounds(schema: Schema) -> str:
    """The bounds of a field and of its items, in words; empty where there are none."""
    found = dict.fromkeys(text for alternative in without_null(schema) for text in _bounds(alternative))
    return ", ".join(found)


def _bounds(schema: Schema) -> list[str]:
    low = f"above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else _number(schema.get("minimum"))
    found = [
        _between(low, _number(schema.get("maximum")), ""),
        _between(_number(schema.get("minLength")), _number(schema.get("maxLength")), " characters"),
        _between(_number(schema.get("minItems")), _number(schema.get("maxItems")), " items"),
        _between("", _number(schema.get("maxProperties")), " entries"),
        f"`{schema['pattern']}`" if "pattern" in schema else "",
    ]
    inner = [schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), dict)]
    return [text for text in found if text] + [f"each {inside}" for one in inner if (inside := bounds(one))]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _between(low: str, high: str, unit: str) -> str:
    if low and high:
        return f"{low} to {high}{unit}"
    if high:
        return f"up to {high}{unit}"
    if low == "1" and unit:
        return "not empty"
    return f"{low}{unit}" if low.startswith("above") else f"at least {low}{unit}" if low else ""
