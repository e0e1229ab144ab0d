"""The report on a candidate: what was measured, the verdict, the reasons.

Owns its schema and its files, `report.json` for programs and `report.html` for people. Measures nothing.
"""

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...weights.durable import write_durably
from ..data.records import Manifest
from ..options import TrainingOptions, VerifyLimits
from ..progress import Evaluated, Trained, read_event
from .drift import Drift, ReindexCost

JSON_FILE, HTML_FILE = "report.json", "report.html"
Learned: TypeAlias = Annotated[Trained | Evaluated, Field(discriminator="event")]


class Comparison(BaseModel):
    """A measure of the live version and of the candidate; low, high: 95 % interval of the difference."""

    model_config = ConfigDict(frozen=True)

    before: float
    after: float
    difference: float
    low: float
    high: float
    p_worse: float


class Example(BaseModel):
    """A held-out query and the rank of what it should find, from 1. query: its first line; file: of what it finds."""

    model_config = ConfigDict(frozen=True)

    query: str
    file: str
    before: int
    after: int


class Report(BaseModel):
    """All that is known of a candidate. What could not be measured is absent.

    judged: by what, in words. verdict: a sentence; reasons: why it was not accepted. metrics: by name, as jobs show
    them. parent, version: names of versions; parent_weights, weights: as `version` in replies. history: the trainer's
    events.
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
    history: list[Learned] = Field(default_factory=list)
    data: Manifest | None = None
    options: TrainingOptions
    limits: VerifyLimits


def write_report(folder: Path, report: Report) -> None:
    """Write both files; report.json is the last, so where it is all is. Raises OSError."""
    from .report_page import page

    write_durably(folder / HTML_FILE, page(report).encode())
    write_durably(folder / JSON_FILE, report.model_dump_json(indent=1).encode())


def read_report(folder: Path) -> Report | None:
    """The report in a folder; None where there is none. Raises ValidationError."""
    file = folder / JSON_FILE
    return Report.model_validate_json(file.read_bytes()) if file.is_file() else None


def read_history(file: Path) -> list[Learned]:
    """The trainer's losses and evaluations; a line that is torn, or whose loss is no number, is left out."""
    events: list[Learned] = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with suppress(ValidationError):
            event = read_event(line)
            if isinstance(event, Trained | Evaluated):
                events.append(event)
    return events


def read_manifest(file: Path) -> Manifest | None:
    """What is known of the pairs; None where that cannot be read."""
    with suppress(OSError, ValidationError):
        return Manifest.model_validate_json(file.read_bytes())
    return None
