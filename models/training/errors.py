"""The reasons for which fine-tuning refuses or fails; each message says what to change."""

from ..errors import ModelError

DISK_FULL = "no space is left in {folder}; free some, and ask again"


class TrainingError(ModelError):
    """Ends a run on purpose."""


class PathRefused(TrainingError):
    """A codebase is outside the allowed roots, or cannot be read; `reason` is a clause."""

    path: str
    reason: str
    message = "{path} cannot be trained on: {reason}"


class NoPairs(TrainingError):
    """There is too little to train on; `reason` is a clause with what was found."""

    reason: str
    message = "there is too little to train on: {reason}"


class MalformedPair(TrainingError):
    """A line of training data is not a pair; lines count from 1."""

    line: int
    reason: str
    message = "line {line} is no training pair: {reason}"


class CannotTrain(TrainingError):
    """The model cannot be trained here; `reason` is a clause with the next step."""

    model: str
    reason: str
    message = "model {model!r} cannot be trained: {reason}"
