"""The report on a candidate: measurements, verdict and reasons, as JSON and as an HTML page without scripts."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...weights.durable import write_durably
from ..data.records import Manifest
from ..progress import Evaluated, Trained, read_history
from ..run import TrainingOptions, VerifyLimits
from .charts import Bar, bar_chart, histogram, line_chart
from .drift import Drift, ReindexCost

JSON_FILE, HTML_FILE = "report.json", "report.html"
TrainerEvent: TypeAlias = Annotated[Trained | Evaluated, Field(discriminator="event")]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of the live version and the candidate; low, high: 95 % interval of the difference."""

    before: float
    after: float
    difference: float
    low: float
    high: float
    p_worse: float


@dataclass(frozen=True, slots=True)
class Example:
    """A held-out query and the rank of its relevant document, from 1. query: its first line; file: of the document."""

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


def write_report(folder: Path, report: Report) -> None:
    """Write the page, then report.json, which marks the report as complete. Raises OSError."""
    write_durably(folder / HTML_FILE, page(report).encode())
    write_durably(folder / JSON_FILE, report.model_dump_json(indent=1).encode())


def page(report: Report) -> str:
    """The whole page, as HTML. A section without numbers is left out."""
    losses = [(event.step, event.loss) for event in report.history if isinstance(event, Trained)]
    evaluations = [
        (f"epoch {event.epoch:g}", ", ".join(f"{name} {value:.3f}" for name, value in event.metrics.items()))
        for event in report.history
        if isinstance(event, Evaluated)
    ]
    settings = report.options.model_dump() | report.limits.model_dump()
    return _template().render(
        report=report,
        retrieval_chart=Markup(_retrieval_chart(report)),
        drift_chart=Markup(_drift_chart(report)),
        loss_chart=Markup(line_chart(losses, "Loss of the training", "step") if losses else ""),
        evaluations=evaluations,
        settings=[(name.replace("_", " "), str(value)) for name, value in settings.items() if value is not None],
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        loader=PackageLoader(__package__, "."),
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"number": "{:,}".format, "counts": _counts}
    return environment.get_template("report.template.html")


def _retrieval_chart(report: Report) -> str:
    groups = [
        (
            f"{name.upper()}, held-out pairs",
            _bars(found.before, found.after, found.before + found.low, found.before + found.high),
        )
        for name, found in report.retrieval.items()
    ]
    if "probe_before" in report.metrics:
        scores = report.metrics["probe_before"], report.metrics["probe_after"]
        groups.append(("MRR@10, everyday English", _bars(*scores)))
    return bar_chart(groups, "Retrieval before and after") if groups else ""


def _bars(before: float, after: float, low: float | None = None, high: float | None = None) -> list[Bar]:
    return [Bar("live", before), Bar("candidate", after, low, high, strong=True)]


def _drift_chart(report: Report) -> str:
    if (drift := report.drift) is None:
        return ""
    marks = (("median", drift.cosine_p50), ("5th percentile", drift.cosine_p5))
    return histogram(drift.edges, drift.counts, "Cosine of the old and the new vector of a text", marks)


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered)
