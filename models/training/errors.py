"""The reasons for which fine-tuning refuses or fails; each message says what to change."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ModelError


class TrainingError(ModelError):
    """Ends a run on purpose. template: the message, with the error's fields."""

    template: ClassVar[str]

    def __str__(self) -> str:
        return self.template.format_map(vars(self))


@dataclass(eq=False)
class PathRefused(TrainingError):
    """A codebase is outside the allowed roots, or cannot be read; `reason` is a clause."""

    path: str
    reason: str
    template = "{path} cannot be trained on: {reason}"


@dataclass(eq=False)
class NoPairs(TrainingError):
    """There is too little to train on; `reason` is a clause with what was found."""

    reason: str
    template = "there is too little to train on: {reason}"


@dataclass(eq=False)
class MalformedPair(TrainingError):
    """A line of training data is not a pair; lines count from 1."""

    line: int
    reason: str
    template = "line {line} is no training pair: {reason}"


@dataclass(eq=False)
class BadJudge(TrainingError):
    """The evaluation data of the setting `finetune.judge` cannot be used; `reason` is a clause."""

    path: str
    reason: str
    template = "finetune.judge, {path}, cannot be judged by: {reason}"


@dataclass(eq=False)
class CannotTrain(TrainingError):
    """The model cannot be trained here; `reason` is a clause with the next step."""

    model: str
    reason: str
    template = "model {model!r} cannot be trained: {reason}"


@dataclass(eq=False)
class Diverged(TrainingError):
    """The loss became infinite or NaN before any epoch was better than the old weights."""

    step: int
    template = "the loss was no number any more at step {step}; try a lower learning_rate"


@dataclass(eq=False)
class DiskFull(TrainingError):
    """The disk is too full for a run's files."""

    folder: str
    template = "no space is left in {folder}; free some, and ask again"
