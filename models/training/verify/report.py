"""The schema of the report on a candidate: measurements, verdict and reasons, as `report.json`."""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..data.records import Manifest
from ..options import TrainingOptions, VerifyLimits
from ..progress import Evaluated, Trained, read_history
from .drift import Drift, ReindexCost

JSON_FILE = "report.json"
TrainerEvent: TypeAlias = Annotated[Trained | Evaluated, Field(discriminator="event")]


class Comparison(BaseModel):
    """A metric of the live version and the candidate; low, high: 95 % interval of the difference."""

    model_config = ConfigDict(frozen=True)

    before: float
    after: float
    difference: float
    low: float
    high: float
    p_worse: float


class Example(BaseModel):
    """A held-out query and the rank of its relevant document, from 1. query: its first line; file: of the document."""

    model_config = ConfigDict(frozen=True)

    query: str
    file: str
    before: int
    after: int


class Report(BaseModel):
    """The findings on a candidate. What could not be measured is absent.

    judged: the evaluation data, in words. verdict: a sentence; reasons: why it was rejected. metrics: by name, as jobs
    show them. parent, version: names of versions; parent_weights, weights: as `version` in replies. history: the
    trainer's events.
    """

    model_config = ConfigDict(frozen=True)

    accepted: bool
    judged: str | None = None
    verdict: str
    reasons: list[str]
    metrics: dict[str, float]
    model: str
    job: str
    created_at: datetime
    parent: str
    parent_weights: str
    version: str | None = None
    weights: str | None = None
    queries: int = 0
    documents: int = 0
    retrieval: dict[str, Comparison] = Field(default_factory=dict)
    drift: Drift | None = None
    reindex: ReindexCost | None = None
    examples: list[Example] = Field(default_factory=list)
    history: list[TrainerEvent] = Field(default_factory=list)
    data: Manifest | None = None
    options: TrainingOptions
    limits: VerifyLimits


def read_report(folder: Path) -> Report | None:
    """The report in a folder; None where there is none. Raises ValidationError."""
    file = folder / JSON_FILE
    return Report.model_validate_json(file.read_bytes()) if file.is_file() else None


def trainer_events(file: Path) -> list[TrainerEvent]:
    """The trainer's losses and evaluations. Raises OSError."""
    return [event for event in read_history(file) if isinstance(event, Trained | Evaluated)]


def read_manifest(file: Path) -> Manifest | None:
    """The manifest of the pairs; None where it cannot be read."""
    with suppress(OSError, ValidationError):
        return Manifest.model_validate_json(file.read_bytes())
    return None
