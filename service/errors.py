"""The table from errors of `models` to errors of the wire; the first class that fits counts."""

from models import errors as models
from models.generation import errors as generation
from models.training import errors as training
from subjects import errors as wire

_TABLE: dict[type[Exception], type[wire.MLError]] = {
    models.UnknownModel: wire.NotFound,
    models.TextTooLong: wire.TooLarge,
    models.InvalidOption: wire.InvalidField,
    models.DeviceFailed: wire.Unavailable,
    models.OutOfDeviceMemory: wire.OutOfMemory,
    models.OverBudget: wire.OutOfMemory,
    models.UnknownVersion: wire.NotFound,
    models.NotLoaded: wire.NotFound,
    models.Conflict: wire.Conflict,
    generation.InvalidRequest: wire.InvalidField,
    generation.PromptTooLong: wire.TooLarge,
    generation.EngineFull: wire.Busy,
    generation.DuplicateRequest: wire.Conflict,
    generation.NonFiniteLogits: wire.Internal,
    training.PathRefused: wire.InvalidField,
    training.NoPairs: wire.InvalidField,
    training.MalformedPair: wire.InvalidField,
    training.CannotTrain: wire.InvalidField,
    models.ModelError: wire.NotServed,
}

INTERNAL = "internal error; the worker's log tells more under this request id"


def to_wire(error: BaseException) -> wire.MLError | None:
    """The wire error for an exception; None for an unexpected one (log it, send INTERNAL)."""
    if isinstance(error, wire.MLError):
        return error
    kind = next((kind for known, kind in _TABLE.items() if isinstance(error, known)), None)
    return kind(str(error)) if kind else None
