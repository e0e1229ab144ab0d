"""What is kept after each epoch: the weights that are trained, and all that it takes to go on as if nothing had been.

Owns the folders `epoch-N`, which appear whole, and the scores that say which one is best. Knows no model.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...weights.durable import clear_leftovers, discard, publish_folder, temporary_name

WEIGHTS = "weights.safetensors"
SCORES = "scores.json"
STATE = "trainer_state.json"
MEASURE = "ndcg@10"
KEPT = 2
_NAME = re.compile(r"epoch-([1-9]\d*)")


@dataclass(slots=True)
class Epochs:
    """The epochs that are done. scores: before the training, then after each; empty ones where nothing is held out."""

    folder: Path
    scores: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def found(cls, folder: Path) -> "Epochs":
        """Those of a run that was cut off, or none. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        epochs = cls(folder)
        if (newest := epochs.newest) is not None:
            epochs.scores = json.loads((newest / SCORES).read_bytes())
        return epochs

    @property
    def done(self) -> int:
        """How many epochs are kept or have been."""
        return max(self._numbers(), default=0)

    @property
    def newest(self) -> Path | None:
        """Where to go on from."""
        return self._path(self.done) if self.done else None

    @property
    def step(self) -> int:
        """How many steps of the optimiser are in the newest epoch and those before it. Raises OSError, ValueError."""
        return int(json.loads((self.newest / STATE).read_bytes())["global_step"]) if self.newest else 0

    @property
    def best(self) -> Path | None:
        """The epoch that found most, of equal ones the first; where nothing was measured the last."""
        return self._path(self.best_number) if self.done else None

    @property
    def best_number(self) -> int:
        """Its number, from 1; 0 where no epoch is done."""
        if not self.scores or not self.scores[0]:
            return self.done
        return max(range(1, self.done + 1), key=lambda epoch: (self._value(epoch), -epoch), default=0)

    @property
    def gained(self) -> bool:
        """Whether the best epoch is better than no training, or nobody can tell."""
        return self.done > 0 and (not self.scores[0] or self._value(self.best_number) > self._value(0))

    def exhausted(self, patience: int) -> bool:
        """Whether so many evaluations in a row brought no gain."""
        if not self.scores or not self.scores[0]:
            return False
        values = [score[MEASURE] for score in self.scores]
        return len(values) - 1 - values.index(max(values)) >= patience

    def keep(self, write: Callable[[Path], None]) -> None:
        """Let the state after the last score be written into a folder, and remove older ones but the best.

        Raises OSError.
        """
        number = len(self.scores) - 1
        final = self._path(number)
        temporary = temporary_name(final)
        try:
            temporary.mkdir()
            write(temporary)
            (temporary / SCORES).write_text(json.dumps(self.scores))
            publish_folder(temporary, final)
        except BaseException:
            discard(temporary)
            raise
        for old in self._numbers():
            if old <= number - KEPT and old != self.best_number:
                discard(self._path(old))

    def _value(self, epoch: int) -> float:
        return self.scores[epoch][MEASURE]

    def _path(self, number: int) -> Path:
        return self.folder / f"epoch-{number}"

    def _numbers(self) -> list[int]:
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)
