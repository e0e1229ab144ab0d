"""What the models package refuses or fails at. service/errors.py maps these classes to the errors of the wire."""

from dataclasses import dataclass
from inspect import get_annotations
from typing import Any, ClassVar, dataclass_transform

from pydantic import ValidationError


@dataclass_transform(eq_default=False)
class ModelError(Exception):
    """Base of all errors that the package raises on purpose; raised with a text, as are subclasses without fields.

    Any other subclass is a dataclass of facts, from which its `message` is filled in; a tuple is written as a list.
    """

    message: ClassVar[str] = "{}"

    def __init_subclass__(cls) -> None:
        if get_annotations(cls):
            dataclass(eq=False)(cls)

    def __str__(self) -> str:
        return self.message.format(*self.args, **{name: _text(value) for name, value in vars(self).items()})


def _text(value: Any) -> Any:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else value


def cause_text(error: BaseException) -> str:
    """The type and the first line of an exception, as part of a `reason`."""
    return f"{type(error).__name__}: {first_line(error)}"


def first_line(error: BaseException) -> str:
    """The first line of an exception's text."""
    return str(error).partition("\n")[0][:300]


def fault_text(error: ValidationError) -> str:
    """The place, if it is not the whole, and the reason of the first fault that pydantic found."""
    first = error.errors(include_url=False)[0]
    where, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def size_text(size_bytes: int) -> str:
    """A size for people to read, such as "1.25 GB"."""
    units = ((10**9, "GB", 2), (10**6, "MB", 0), (10**3, "KB", 0))
    unit, name, digits = next((unit for unit in units if size_bytes >= unit[0]), units[-1])
    return f"{size_bytes / unit:.{digits}f} {name}"


class UnknownModel(ModelError):
    """No catalogue entry has this id."""

    model: str
    known: tuple[str, ...]
    message = "unknown model {model!r}; known: {known}"


class BadEntry(ModelError):
    """A catalogue entry, usually the user's own, does not fit the schema."""

    model: str
    reason: str
    message = "catalogue entry {model!r}: {reason}"


class ModelUnavailable(ModelError):
    """The model is known but cannot be loaded here; `reason` is a clause with the next step."""

    model: str
    reason: str
    message = "model {model!r} is unavailable: {reason}"


class CorruptWeights(ModelError):
    """A file is not the one that the catalogue pins; digests are SHA-256 in hexadecimal."""

    model: str
    file: str
    expected: str
    found: str
    message = "{file} of model {model!r} has SHA-256 {found}, expected {expected}; delete it and fetch it again"


class SelfTestFailed(ModelError):
    """The loaded model gives wrong vectors; cosines are the lowest over the test texts."""

    model: str
    cosine: float
    required: float
    reference: str
    advice: str = ""
    message = (
        "model {model!r} failed its self-test: a text's vector has the cosine {cosine:.6f} to {reference}, and at "
        "least {required} is required{advice}"
    )


class DeviceFailed(ModelError):
    """The device fails at every call until the process ends; `reason` is its driver's."""

    device: str
    reason: str
    message = "device {device!r} has failed for good: {reason}; start the worker again"


class OutOfDeviceMemory(ModelError):
    """A forward pass did not fit, where a smaller batch may; or loading `model` did not."""

    device: str
    model: str = ""

    def __str__(self) -> str:
        loading = f" while loading model {self.model!r}; unload another model first" if self.model else ""
        return f"out of memory on {self.device}{loading}"


class TextTooLong(ModelError):
    """A text has more tokens, special tokens included, than the model takes, and truncation was not allowed."""

    index: int
    tokens: int
    limit: int
    message = "text {index} has {tokens} tokens, the model takes {limit}"


class InvalidOption(ModelError):
    """The model does not have, or refuses, an option of a request; raised with a text."""


class UnknownVersion(ModelError):
    """The model has no version of this name."""

    model: str
    version: str
    known: tuple[str, ...]
    message = "model {model!r} has no version {version!r}; it has {known}"


class Conflict(ModelError):
    """What is asked for contradicts the state of a model; raised with a text that says what to do."""


class NotLoaded(ModelError):
    """The model that is to be unloaded is not in memory."""

    model: str
    message = "model {model!r} is not loaded on this worker"


class OverBudget(ModelError):
    """A model does not fit into the memory that it may take; sizes in bytes."""

    model: str
    needed: int
    budget: int
    in_use: int

    def __str__(self) -> str:
        takes = f"model {self.model!r} takes {size_text(self.needed)}"
        if not self.in_use:
            return (
                f"{takes}, the budget is {size_text(self.budget)}; raise memory.budget_gb, or load it as int8 or int4"
            )
        return (
            f"{takes}, and {size_text(self.in_use)} of {size_text(self.budget)} are in use by models that may not be "
            "unloaded; raise memory.budget_gb, unload or unpin another model, or load it as int8 or int4"
        )


class Crowded(OverBudget):
    """A model would fit if models that requests use, `busy`, were unloaded."""

    busy: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"model {self.model!r} takes {size_text(self.needed)}, for which {', '.join(self.busy)} would have to "
            "go, and requests use that; ask again later, raise memory.budget_gb, or load one of them as int8 or int4"
        )


class CannotQuantize(ModelError):
    """A model's weights cannot be stored as int8 or int4; `reason` is a clause."""

    quantization: str
    reason: str
    message = "{quantization} is not possible here: {reason}; choose another precision"


class UnknownArchitecture(ModelError):
    """A model's size is not known, because its configuration is not; `reason` is a clause with the next step."""

    model: str
    reason: str
    message = "the size of model {model!r} is not known: {reason}"
