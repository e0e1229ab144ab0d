"""A fine-tuning run: its options, limits and specification, and the files of its folder.

The steps `collect`, `train` and `verify` each read the folder and add files to it; an interrupted run resumes there.
"""

from datetime import date
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from ..catalogue import ModelSpec


class TrainingOptions(BaseModel):
    """How to train: the fields of `ml.finetune` on the wire, for a caller in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: Literal["auto", "lora", "full"] = "auto"
    loss: Literal["infonce", "triplet"] = "infonce"
    matryoshka: bool = False
    epochs: int = Field(1, ge=1, le=100)
    batch_size: int = Field(32, ge=2, le=4096)
    micro_batch: int | None = Field(None, ge=1, le=4096)
    learning_rate: float = Field(1e-5, gt=0, le=0.1)
    warmup: float = Field(0.1, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=8, le=32768)
    patience: int = Field(2, ge=1, le=100)
    hard_negatives: int = Field(1, ge=0, le=8)
    lora_rank: int = Field(16, ge=1, le=256)
    seed: int = Field(0, ge=0, le=2**32 - 1)


class VerifyLimits(BaseModel):
    """The limits a candidate must keep to be accepted. Drift is measured on the held-out texts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    require_gain: bool = Field(True, description="reject a candidate without a significant gain on the held-out pairs")
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="confidence level at which a candidate counts as worse or better"
    )
    probe_drop: float = Field(0.01, ge=0, le=1, description="decline on general English that is allowed")
    min_cosine_p5: float = Field(
        0.5, ge=-1, le=1, description="least cosine of the old to the new vector of a text, 5th percentile"
    )
    min_overlap: float = Field(
        0.3, ge=0, le=1, description="least share of the ten nearest neighbours that stay the same"
    )
    max_slowdown: float = Field(1.5, ge=1, le=10, description="time of a batch, relative to the live version")


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
