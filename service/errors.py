"""The one table from the errors of `models` to the errors of the wire."""

from models import errors as models
from subjects import errors as wire

_TABLE: dict[type[Exception], type[wire.MLError]] = {
    models.UnknownModel: wire.NotFound,
    models.ModelUnavailable: wire.NotServed,
    models.TextTooLong: wire.TooLarge,
    models.UnknownPrompt: wire.InvalidField,
    models.BadDimensions: wire.InvalidField,
    models.OutOfDeviceMemory: wire.OutOfMemory,
}

INTERNAL = "internal error; the worker's log tells more under this request id"


def to_wire(error: BaseException) -> wire.MLError | None:
    """The wire error for an exception; None for one that nobody foresaw (log it, send INTERNAL)."""
    if isinstance(error, wire.MLError):
        return error
    kind = next((kind for known, kind in _TABLE.items() if isinstance(error, known)), None)
    return kind(str(error)) if kind else None
