"""Bodies of other APIs as requests: what means nothing here is left out, and what cannot be honoured is refused."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from subjects import codec
from subjects.errors import InvalidField

RequestT = TypeVar("RequestT", bound=BaseModel)
Ignored = Mapping[str, str]
"""Fields that clients send and that mean nothing here, and what they are for elsewhere."""
Neutral = Mapping[str, tuple[Any, ...]]
"""Fields that cannot be honoured, and the values with which they ask for nothing."""
NONE: Mapping[str, Any] = {}


def accepted(
    fields: Mapping[str, Any], request: type[RequestT], ignored: Ignored = NONE, neutral: Neutral = NONE
) -> RequestT:
    """The request. A field that is null counts as absent. Raises InvalidField, which names the field."""
    return codec.validate(kept(fields, ignored, neutral), request)


def kept(fields: Mapping[str, Any], ignored: Ignored, neutral: Neutral, inside: str = "") -> dict[str, Any]:
    """The fields that mean something. inside: the path of what has them, with a point. Raises InvalidField."""
    found = {}
    for name, value in fields.items():
        if value is None or name in ignored:
            continue
        if name not in neutral:
            found[name] = value
        elif value not in neutral[name]:
            raise InvalidField(f"field '{inside}{name}' cannot be honoured: no model here does that; leave it out")
    return found
