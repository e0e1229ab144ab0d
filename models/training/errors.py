"""What fine-tuning can refuse or fail at; each says what to change."""

from dataclasses import dataclass

from ..errors import ModelError


class TrainingError(ModelError):
    """Anything that ends a run on purpose."""


@dataclass(eq=False)
class PathRefused(TrainingError):
    """A codebase lies where it may not, or is none; `reason` is a clause."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path} cannot be trained on: {self.reason}"


@dataclass(eq=False)
class NoPairs(TrainingError):
    """There is too little to train on; `reason` is a clause with what was found."""

    reason: str

    def __str__(self) -> str:
        return f"there is too little to train on: {self.reason}"


@dataclass(eq=False)
class MalformedPair(TrainingError):
    """A line of training data is no pair; lines count from 1."""

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line} is no training pair: {self.reason}"


@dataclass(eq=False)
class BadJudge(TrainingError):
    """What the operator wants candidates to be judged by cannot be used; `reason` is a clause."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"finetune.judge, {self.path}, cannot be judged by: {self.reason}"


@dataclass(eq=False)
class CannotTrain(TrainingError):
    """The model cannot be trained here; `reason` is a clause with the next step."""

    model: str
    reason: str

    def __str__(self) -> str:
        return f"model {self.model!r} cannot be trained: {self.reason}"


@dataclass(eq=False)
class Diverged(TrainingError):
    """The loss stopped being a number before anything better than the old weights was there."""

    step: int

    def __str__(self) -> str:
        return f"the loss was no number any more at step {self.step}; try a lower learning_rate"


@dataclass(eq=False)
class DiskFull(TrainingError):
    """There is no room for what a run has to write."""

    folder: str

    def __str__(self) -> str:
        return f"no space is left in {self.folder}; free some, and ask again"
