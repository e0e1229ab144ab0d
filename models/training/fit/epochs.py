"""Checkpoints after each epoch, in folders `epoch-N` that appear whole, and the scores that say which is best."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...weights.durable import clear_leftovers, discard, new_folder

WEIGHTS = "weights.safetensors"
SCORES = "scores.json"
STATE = "trainer_state.json"
MEASURE = "ndcg@10"
KEPT = 2
_NAME = re.compile(r"epoch-([1-9]\d*)")


@dataclass(slots=True)
class Epochs:
    """The epochs done. scores: before the training, then after each; empty ones where nothing is held out."""

    folder: Path
    scores: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> "Epochs":
        """The epochs of an interrupted run, or none. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)
        epochs = cls(folder)
        if (newest := epochs.newest) is not None:
            epochs.scores = json.loads((newest / SCORES).read_bytes())
        return epochs

    @property
    def done(self) -> int:
        return max(self._numbers(), default=0)

    @property
    def newest(self) -> Path | None:
        """The checkpoint to resume from."""
        return self._path(self.done) if self.done else None

    @property
    def step(self) -> int:
        """The optimiser steps up to the newest epoch. Raises OSError, ValueError."""
        return int(json.loads((self.newest / STATE).read_bytes())["global_step"]) if self.newest else 0

    @property
    def best(self) -> Path | None:
        """The first epoch with the highest score; the last one where nothing is held out."""
        return self._path(self.best_number) if self.done else None

    @property
    def best_number(self) -> int:
        """The number of the best epoch, from 1; 0 where no epoch is done."""
        if not self.scores or not self.scores[0]:
            return self.done
        return max(range(1, self.done + 1), key=lambda epoch: (self._value(epoch), -epoch), default=0)

    @property
    def gained(self) -> bool:
        """Whether the best epoch is better than no training, or nothing is held out to tell."""
        return self.done > 0 and (not self.scores[0] or self._value(self.best_number) > self._value(0))

    def stagnates(self, patience: int) -> bool:
        """Whether the last `patience` evaluations brought no gain."""
        if not self.scores or not self.scores[0]:
            return False
        values = [score[MEASURE] for score in self.scores]
        return len(values) - 1 - values.index(max(values)) >= patience

    def save(self, write: Callable[[Path], None]) -> None:
        """Write the checkpoint of the last score with `write`, and remove older ones except the best.

        Raises OSError.
        """
        number = len(self.scores) - 1
        with new_folder(self._path(number)) as temporary:
            write(temporary)
            (temporary / SCORES).write_text(json.dumps(self.scores))
        for old in self._numbers():
            if old <= number - KEPT and old != self.best_number:
                discard(self._path(old))

    def _value(self, epoch: int) -> float:
        return self.scores[epoch][MEASURE]

    def _path(self, number: int) -> Path:
        return self.folder / f"epoch-{number}"

    def _numbers(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)
