"""The events of a training step: JSON lines on standard output, and on file for the report."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..weights.durable import write_durably


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Note(_Event):
    """Something the job's owner should know, such as a batch that was halved."""

    event: Literal["note"] = "note"
    text: str


class Collected(_Event):
    """The pairs are written. digest: SHA-256 over the code or the pairs they were made from."""

    event: Literal["collected"] = "collected"
    pairs: int
    held_out: int
    digest: str


class Measured(_Event):
    """The training's memory on the device, without its libraries, and the seconds it will take.

    Both are estimates from steps that are measured before the training begins.
    """

    event: Literal["measured"] = "measured"
    memory_bytes: int
    eta_s: float


class Trained(_Event):
    """An optimiser step is done. loss: the mean since the last such event; eta_s: seconds left."""

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
    """The new weights are written. stopped: why the training ended before its last epoch, if it did."""

    event: Literal["candidate"] = "candidate"
    weights_sha256: str
    stopped: str | None = None


class Verified(_Event):
    """The report is written. reasons: why the candidate was rejected, empty if it was accepted."""

    event: Literal["verified"] = "verified"
    accepted: bool
    reasons: list[str]
    metrics: dict[str, float]


class Failed(_Event):
    """The step failed, for a reason that the job's owner can act on."""

    event: Literal["failed"] = "failed"
    reason: str


Event: TypeAlias = Note | Collected | Measured | Trained | Evaluated | Candidate | Verified | Failed
Emit: TypeAlias = Callable[[Event], None]
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def emit(event: Event) -> None:
    sys.stdout.write(event.model_dump_json() + "\n")
    sys.stdout.flush()


def read_event(line: str | bytes) -> Event:
    """Parse an event. Raises ValidationError."""
    return _EVENT.validate_json(line)


def read_history(path: Path) -> Iterator[Event]:
    """The events in a file. A line that cannot be read is skipped, such as a torn one. Raises OSError."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValidationError):
            yield read_event(line)


class History:
    """Emits the trainer's events and keeps them on file, for the report's loss curve."""

    def __init__(self, path: Path, emit: Emit) -> None:
        self._path = path
        self._emit = emit

    def add(self, event: Event) -> None:
        """Append an event to the file, then emit it. Raises OSError."""
        with self._path.open("ab") as file:
            file.write(_line(event))
        self._emit(event)

    def rewind(self, step: int, epoch: int) -> None:
        """Remove the events after a step and an epoch, before a training resumes there. Raises OSError."""
        kept = [event for event in read_history(self._path) if _came_before(event, step, epoch)]
        write_durably(self._path, b"".join(map(_line, kept)))


def _line(event: Event) -> bytes:
    return event.model_dump_json().encode() + b"\n"


def _came_before(event: Event, step: int, epoch: int) -> bool:
    match event:
        case Trained():
            return event.step <= step
        case Evaluated():
            return step > 0 and event.epoch <= epoch
        case Measured():
            return False  # measured again
        case _:
            return True
