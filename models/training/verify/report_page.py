"""The report on a candidate as one HTML page, without scripts or external resources; and both of its files."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from ...weights.durable import write_durably
from ..progress import Evaluated, Trained
from .charts import Bar, bar_chart, histogram, line_chart
from .report import JSON_FILE, Report

HTML_FILE = "report.html"


def write_report(folder: Path, report: Report) -> None:
    """Write the page, then report.json, which marks the report as complete. Raises OSError."""
    write_durably(folder / HTML_FILE, page(report).encode())
    write_durably(folder / JSON_FILE, report.model_dump_json(indent=1).encode())


def page(report: Report) -> str:
    """The whole page, as HTML. A section without numbers is left out."""
    evaluations = (event for event in report.history if isinstance(event, Evaluated))
    settings = report.options.model_dump() | report.limits.model_dump()
    return _template().render(
        report=report,
        retrieval_chart=Markup(_retrieval_chart(report)),
        drift_chart=Markup(_drift_chart(report)),
        loss_chart=Markup(_loss_chart(report)),
        evaluations=[(f"epoch {event.epoch:g}", _metrics(event.metrics)) for event in evaluations],
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


def _loss_chart(report: Report) -> str:
    points = [(event.step, event.loss) for event in report.history if isinstance(event, Trained)]
    return line_chart(points, "Loss of the training", "step") if points else ""


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered)
