"""The trainer's events on file, for the report's curve of the loss; each is said as well.

Owns the file. A training that goes on from a checkpoint takes back what was said after it.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from ...weights.durable import write_durably
from ..progress import Evaluated, Event, Measured, Trained, read_event


class History:
    """Says events and files them."""

    def __init__(self, path: Path, say: Callable[[Event], None]) -> None:
        self._path = path
        self._say = say

    def add(self, event: Event) -> None:
        """File it, then say it. Raises OSError."""
        with self._path.open("ab") as file:
            file.write(event.model_dump_json().encode() + b"\n")
        self._say(event)

    def rewind(self, step: int, epoch: int) -> None:
        """Forget what came after a step and an epoch, and a line that was cut off. Raises OSError."""
        kept = [event for event in self._read() if _came_before(event, step, epoch)]
        write_durably(self._path, b"".join(event.model_dump_json().encode() + b"\n" for event in kept))

    def _read(self) -> Iterator[Event]:
        for line in self._path.read_bytes().splitlines() if self._path.is_file() else ():
            try:
                yield read_event(line)
            except ValidationError:
                return


def _came_before(event: Event, step: int, epoch: int) -> bool:
    match event:
        case Trained():
            return event.step <= step
        case Evaluated():
            return step > 0 and event.epoch <= epoch
        case Measured():
            return False  # it is measured anew
        case _:
            return True
