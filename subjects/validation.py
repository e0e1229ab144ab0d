"""Plain values to messages, and error messages that name the field at fault."""

import functools
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import InvalidField, MLError, TooLarge

MessageT = TypeVar("MessageT", bound=BaseModel)


def validate(fields: Any, message: type[MessageT]) -> MessageT:
    """Plain values as a message. Raises TooLarge or InvalidField, naming the field."""
    # Before pydantic, and only three: pydantic would report each of a million unknown names.
    if foreign := list(islice(_foreign(fields, message), 3)):
        raise InvalidField("; ".join(foreign))
    try:
        return message.model_validate(fields)
    except ValidationError as error:
        raise _explain(error, message) from None


def _explain(error: ValidationError, message: type[BaseModel]) -> MLError:
    """The first three faults, each with the name of its field."""
    faults = error.errors(include_url=False, include_context=True, include_input=False)
    text = "; ".join(_fault(fault, message) for fault in faults[:3])
    if len(faults) > 3:
        text += f"; and {len(faults) - 3} more"
    too_large = {"string_too_long", "too_long", "bytes_too_long"}
    return TooLarge(text) if faults[0]["type"] in too_large else InvalidField(text)


def _foreign(fields: Any, message: type[BaseModel], path: str = "") -> Iterator[str]:
    """A sentence for each name, at any depth, for which the message has no field."""
    if not isinstance(fields, dict):
        return
    for name, value in fields.items():
        if name not in message.model_fields:
            yield f"unknown field {path + str(name)[:64]!r}; the fields are {', '.join(message.model_fields)}"
        elif (inner := _inner(message, name)) and isinstance(value, list):
            for place, entry in enumerate(value):
                yield from _foreign(entry, inner, f"{path}{name}.{place}.")
        elif inner:
            yield from _foreign(value, inner, f"{path}{name}.")


@functools.cache
def _inner(message: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The type of message that a field holds, alone or in a list; None if it holds none."""
    return next(_messages_in(message.model_fields[field].annotation), None)


def _messages_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _messages_in(argument)


def map_expected(message: type[BaseModel]) -> str:
    return f"the body must be a map of fields: {', '.join(message.model_fields)}"


def _fault(fault: ErrorDetails, message: type[BaseModel]) -> str:
    where = ".".join(str(part)[:64] for part in fault["loc"])
    if fault["type"] == "missing":
        return f"field {where!r} is missing"
    if fault["type"] in ("model_type", "dict_type", "model_attributes_type"):
        return f"field {where!r} must be a map" if where else map_expected(message)
    if fault["type"] == "string_unicode":
        return f"field {where!r} holds a lone surrogate; send valid Unicode"
    reason = fault["msg"].removeprefix("Value error, ").replace(" after validation", "")
    return f"field {where!r}: {reason}" if where else reason
