"""A fine-tuning run: its specification and the files of its folder.

The steps `collect`, `train` and `verify` each read the folder and add files to it; an interrupted run resumes there.
"""

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..catalogue import ModelSpec
from .options import TrainingOptions, VerifyLimits


class RunSpec(BaseModel):
    """What a run is to do.

    entry: the model to train. base: the folder of the weights it starts from; parent: the name of their version.
    codebase: the folder to collect pairs from, below one of `roots`; None: `given` is a file of pairs as JSON lines.
    judge: further evaluation data on which a candidate must not be worse: a file of pairs, or a folder of code below
    one of `roots`. day: names the archived training data. memory_bytes: what the process may allocate beside its
    libraries; None: what is free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: str
    entry: ModelSpec
    base: Path
    parent: str
    codebase: Path | None = None
    roots: tuple[Path, ...] = ()
    given: Path | None = None
    judge: Path | None = None
    training_data: Path
    day: date
    options: TrainingOptions = TrainingOptions()
    limits: VerifyLimits = VerifyLimits()
    device: Literal["auto", "cuda", "cpu"] = "auto"
    threads: int = Field(1, ge=1)
    memory_bytes: int | None = Field(None, ge=1)


class RunFolder:
    """The paths of a run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "run.json"
        """The RunSpec, as JSON."""
        self.data = path / "data.jsonl"
        """The pairs, as JSON lines: see dataset.py."""
        self.judge = path / "judge.jsonl"
        """The pairs of `RunSpec.judge`, as JSON lines."""
        self.manifest = path / "manifest.json"
        """The Manifest of the pairs, as JSON."""
        self.checkpoints = path / "epochs"
        """The trainer's state after each epoch, to resume from."""
        self.history = path / "history.jsonl"
        """The trainer's events, as JSON lines, for the report."""
        self.candidate = path / "candidate"
        """The new weights, complete, in the standard layout."""
        self.report = self.candidate / "report"
        """The folder of report.json, report.html and map_from_parent.safetensors."""

    def read(self) -> RunSpec:
        """Raises OSError, ValidationError."""
        return RunSpec.model_validate_json(self.spec.read_bytes())
