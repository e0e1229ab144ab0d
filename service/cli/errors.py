"""The exit code and the one line of each expected error."""

from nats.errors import Error as NatsError

from models.errors import BadEntry, ModelError, UnknownModel
from subjects.errors import InvalidField, Malformed, MLError

from ..bus.errors import BadBusSettings, BusError
from ..settings import BadSettings

FAILED, UNUSABLE = 1, 2

_TABLE: tuple[tuple[type[Exception], int], ...] = (
    (BadSettings, UNUSABLE),
    (BadBusSettings, UNUSABLE),
    (BadEntry, UNUSABLE),
    (UnknownModel, UNUSABLE),
    (InvalidField, UNUSABLE),
    (Malformed, UNUSABLE),
    (BusError, FAILED),
    (ModelError, FAILED),
    (MLError, FAILED),
    (NatsError, FAILED),
    (OSError, FAILED),
)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Exit code and text of an expected error; None for a bug, which gets a traceback."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno is None:  # not from the system, but a time-out of our own
        return None
    code = next((code for kind, code in _TABLE if isinstance(error, kind)), None)
    return None if code is None else (code, str(error).removeprefix("nats: "))
