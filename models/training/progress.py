"""What a step says while it works and when it ends: JSON lines on standard output, one event each."""

import sys
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Note(_Event):
    """Something that whoever asked should know, such as a batch that was halved."""

    event: Literal["note"] = "note"
    text: str


class Collected(_Event):
    """The pairs are written. digest: SHA-256 over the code or the pairs they were made of."""

    event: Literal["collected"] = "collected"
    pairs: int
    held_out: int
    digest: str


class Measured(_Event):
    """What the training takes beside its libraries, on the device, and the seconds until it is over: from steps that
    were measured before it begins."""

    event: Literal["measured"] = "measured"
    memory_bytes: int
    eta_s: float


class Trained(_Event):
    """A step of the optimiser is done. loss: the mean since the last such event; eta_s: seconds that are left."""

    event: Literal["trained"] = "trained"
    step: int
    steps: int
    epoch: float
    loss: float
    pairs_per_s: float
    eta_s: float


class Evaluated(_Event):
    """The held-out pairs were ranked, before the training (epoch 0) or after an epoch."""

    event: Literal["evaluated"] = "evaluated"
    epoch: float
    metrics: dict[str, float]


class Candidate(_Event):
    """The new weights are written. stopped: why it ended before its last epoch, if it did."""

    event: Literal["candidate"] = "candidate"
    weights_sha256: str
    stopped: str | None = None


class Verified(_Event):
    """The report is written. reasons: why the candidate was not accepted."""

    event: Literal["verified"] = "verified"
    accepted: bool
    reasons: list[str]
    metrics: dict[str, float]


class Failed(_Event):
    """The step could not be done, for a reason that whoever asked can do something about."""

    event: Literal["failed"] = "failed"
    reason: str


Event: TypeAlias = Note | Collected | Measured | Trained | Evaluated | Candidate | Verified | Failed
_ANY: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def emit(event: Event) -> None:
    """Say it."""
    sys.stdout.write(event.model_dump_json() + "\n")
    sys.stdout.flush()


def read_event(line: str | bytes) -> Event:
    """What was said. Raises ValidationError."""
    return _ANY.validate_json(line)


def as_dict(event: Event) -> dict[str, Any]:
    """For a report."""
    return event.model_dump(mode="json")
