"""Everything the models floor can refuse or fail at, as one small tree.

Each error carries fields; its text is made from them. It knows no wire codes: the service maps classes to
codes in one table.
"""

from dataclasses import dataclass


class ModelError(Exception):
    """Anything the models floor raises on purpose."""


@dataclass(eq=False)
class UnknownModel(ModelError):
    """No catalogue entry has this id."""

    model: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"unknown model {self.model!r}; known: {', '.join(self.known)}"


@dataclass(eq=False)
class BadEntry(ModelError):
    """A catalogue entry, usually the user's own, does not fit the schema."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"catalogue entry {self.model!r}: {self.reason}"


@dataclass(eq=False)
class ModelUnavailable(ModelError):
    """The model is known but cannot be loaded here; `reason` is a sentence with the next step."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"model {self.model!r} is unavailable: {self.reason}"


@dataclass(eq=False)
class CorruptWeights(ModelError):
    """A file is not the one that the catalogue pins; digests are SHA-256 in hexadecimal."""

    model: str
    file: str
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"{self.file} of model {self.model!r} has SHA-256 {self.found}, expected {self.expected}; "
            "delete it and fetch it again"
        )


@dataclass(eq=False)
class SelfTestFailed(ModelError):
    """The loaded model does not give the vectors it should; cosines are the lowest over the test texts."""

    model: str
    cosine: float
    required: float
    reference: str

    def __str__(self) -> str:
        return (
            f"model {self.model!r} failed its self-test: cosine {self.cosine:.6f} to {self.reference}, "
            f"at least {self.required} required"
        )


@dataclass(eq=False)
class DeviceUnavailable(ModelError):
    """The device asked for is not there."""

    device: str
    reason: str

    def __str__(self) -> str:
        return f"device {self.device!r} is unavailable: {self.reason}"


@dataclass(eq=False)
class OutOfDeviceMemory(ModelError):
    """A forward pass did not fit; a smaller batch may."""

    device: str

    def __str__(self) -> str:
        return f"out of memory on {self.device}"


@dataclass(eq=False)
class TextTooLong(ModelError):
    """A text has more tokens, special tokens included, than the model takes, and was not to be cut."""

    index: int
    tokens: int
    limit: int

    def __str__(self) -> str:
        return f"text {self.index} has {self.tokens} tokens, the model takes {self.limit}"


@dataclass(eq=False)
class UnknownPrompt(ModelError):
    """The model has no prompt of this name."""

    name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"unknown prompt {self.name!r}; known: {', '.join(self.known) or 'none'}"


@dataclass(eq=False)
class UnknownTask(ModelError):
    """The model has no task of this name."""

    name: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"unknown task {self.name!r}; known: {', '.join(self.known) or 'none'}"


@dataclass(eq=False)
class BadDimensions(ModelError):
    """Vectors cannot be cut to this length; `known`: the lengths that the model was trained for, empty: any."""

    dimensions: int
    limit: int
    known: tuple[int, ...] = ()

    def __str__(self) -> str:
        wanted = f"one of {', '.join(map(str, self.known))}" if self.known else f"from 1 to {self.limit}"
        return f"dimensions must be {wanted}, not {self.dimensions}"


@dataclass(eq=False)
class OverBudget(ModelError):
    """A model does not fit into the memory that it may take; sizes in bytes."""

    model: str
    needed: int
    budget: int
    in_use: int

    def __str__(self) -> str:
        return (
            f"model {self.model!r} takes {self.needed / 1e9:.2f} GB and {self.in_use / 1e9:.2f} of "
            f"{self.budget / 1e9:.2f} GB are in use by models that may not be unloaded; raise memory.budget_gb, "
            "unload or unpin another model, or load it as int8 or int4"
        )
