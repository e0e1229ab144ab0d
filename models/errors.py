"""Everything the models floor can refuse or fail at, as one small tree.

Each error carries fields; its text is made from them. It knows no wire codes: the service maps classes to
codes in one table.
"""

from dataclasses import dataclass


class ModelError(Exception):
    """Anything the models floor raises on purpose."""


def _size(number: int) -> str:
    units = ((10**9, "GB", 2), (10**6, "MB", 0), (10**3, "KB", 0))
    unit, name, digits = next((unit for unit in units if number >= unit[0]), units[-1])
    return f"{number / unit:.{digits}f} {name}"


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
    """The model is known but cannot be loaded here; `reason` is a clause with the next step."""

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
    advice: str = ""

    def __str__(self) -> str:
        return (
            f"model {self.model!r} failed its self-test: a text's vector has the cosine {self.cosine:.6f} to "
            f"{self.reference}, and at least {self.required} is required{self.advice}"
        )


@dataclass(eq=False)
class DeviceUnavailable(ModelError):
    """The device asked for is not there."""

    device: str
    reason: str

    def __str__(self) -> str:
        return f"device {self.device!r} is unavailable: {self.reason}"


@dataclass(eq=False)
class DeviceFailed(ModelError):
    """The device fails at whatever it is asked, until the process ends; `reason` is its driver's."""

    device: str
    reason: str

    def __str__(self) -> str:
        return f"device {self.device!r} has failed for good: {self.reason}; start the worker again"


@dataclass(eq=False)
class OutOfDeviceMemory(ModelError):
    """A forward pass did not fit, where a smaller batch may; or loading `model` did not."""

    device: str
    model: str = ""

    def __str__(self) -> str:
        if self.model:
            return f"out of memory on {self.device} while loading model {self.model!r}; unload another model first"
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
class TemplateRefused(ModelError):
    """The chat template through which a model embeds texts takes none as it was sent; `reason` is the template's."""

    reason: str

    def __str__(self) -> str:
        return f"the model's chat template refuses the text or its prompt: {self.reason}"


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
class UnknownVersion(ModelError):
    """The model has no version of this name."""

    model: str
    version: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        return f"model {self.model!r} has no version {self.version!r}; it has {', '.join(self.known)}"


@dataclass(eq=False)
class OtherDimensions(ModelError):
    """New weights of a model give vectors of another length than those that serve; stored vectors would not fit."""

    model: str
    dimensions: int
    served: int

    def __str__(self) -> str:
        return (
            f"the new weights of model {self.model!r} give {self.dimensions} dimensions, those that serve give "
            f"{self.served}; they go on serving. Give the new weights an entry of their own in the catalogue"
        )


@dataclass(eq=False)
class NotLoaded(ModelError):
    """What is to be unloaded is not in memory."""

    model: str

    def __str__(self) -> str:
        return f"model {self.model!r} is not loaded on this worker"


@dataclass(eq=False)
class InUse(ModelError):
    """A model may not be unloaded, because requests use it."""

    model: str
    leases: int

    def __str__(self) -> str:
        return (
            f"model {self.model!r} is in use by {self.leases} requests; try again later, or send force: true, which "
            "takes no new ones and unloads it when these are done"
        )


@dataclass(eq=False)
class OverBudget(ModelError):
    """A model does not fit into the memory that it may take; sizes in bytes."""

    model: str
    needed: int
    budget: int
    in_use: int

    def __str__(self) -> str:
        takes = f"model {self.model!r} takes {_size(self.needed)}"
        if not self.in_use:
            return f"{takes}, the budget is {_size(self.budget)}; raise memory.budget_gb, or load it as int8 or int4"
        return (
            f"{takes}, and {_size(self.in_use)} of {_size(self.budget)} are in use by models that may not be unloaded; "
            "raise memory.budget_gb, unload or unpin another model, or load it as int8 or int4"
        )


@dataclass(eq=False)
class NoSpace(ModelError):
    """The disk has no room for what is to be fetched; sizes in bytes, a margin included."""

    model: str
    needed: int
    free: int
    folder: str

    def __str__(self) -> str:
        return (
            f"model {self.model!r} needs {_size(self.needed)} more in {self.folder}, where {_size(self.free)} are "
            "free; free some (`mlbus models prune` helps), or set HF_HOME to a folder on a larger disk"
        )


@dataclass(eq=False)
class WrongDownload(ModelError):
    """A file did not come as the Hub lists it; `found` and `expected` are sizes or digests. It has been deleted."""

    model: str
    file: str
    expected: str
    found: str

    def __str__(self) -> str:
        return (
            f"{self.file} of model {self.model!r} came with {self.found}, the Hub lists {self.expected}; it has been "
            f"deleted, and the rest is kept. Fetch it again: mlbus models pull {self.model}"
        )


@dataclass(eq=False)
class Crowded(OverBudget):
    """There would be room, were it not for models that requests use."""

    busy: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"model {self.model!r} takes {_size(self.needed)}, for which {', '.join(self.busy)} would have to "
            "go, and requests use that; ask again later, raise memory.budget_gb, or load one of them as int8 or int4"
        )


@dataclass(eq=False)
class CannotQuantize(ModelError):
    """A model's weights cannot be stored as int8 or int4; `reason` is a clause."""

    quantization: str
    reason: str

    def __str__(self) -> str:
        return f"{self.quantization} is not possible here: {self.reason}; choose another precision"


@dataclass(eq=False)
class UnknownArchitecture(ModelError):
    """It is not known what a model's weights look like; `reason` is a clause with the next step."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"the size of model {self.model!r} is not known: {self.reason}"
