"""The report on a candidate as one page for people: no scripts, nothing from elsewhere, everything escaped.

Owns the words and the order of sections. A section without numbers is left out.
"""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from string import Template

from ..data.records import Manifest
from ..progress import Evaluated, Trained
from .charts import Bar, bar_chart, histogram, line_chart
from .drift import Reach
from .report import Example, Report


def page(report: Report) -> str:
    """The whole page, as HTML."""
    sections = (
        _head(report),
        _retrieval(report),
        _examples(report.examples),
        _drift(report),
        _reindex(report),
        _training(report),
        _data(report.data),
        _settings(report),
    )
    template = Template(resources.files(__package__).joinpath("report.template.html").read_text("utf-8"))
    return template.substitute(
        title=escape(f"{report.model}: {report.verdict}"), body="\n".join(filter(None, sections))
    )


def _head(report: Report) -> str:
    kind, word = ("verdict accepted", "Accepted") if report.accepted else ("verdict", "Rejected")
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in report.reasons)
    said = f"<ul>{reasons}</ul>" if reasons else f": {escape(report.verdict.removeprefix('accepted: '))}"
    version = report.version or "without a name"
    return (
        f"<h1>{escape(report.model)}, version {escape(version)}</h1>"
        f'<p class="soft">trained from {escape(report.parent)} ({escape(report.parent_weights)}) by job '
        f"{escape(report.job)}, examined {report.created_at:%Y-%m-%d %H:%M} UTC</p>"
        f'<div class="{kind}"><strong>{word}</strong>{said}</div>'
    )


def _retrieval(report: Report) -> str:
    groups: list[tuple[str, Sequence[Bar]]] = []
    for name, found in report.retrieval.items():
        spread = (found.before + found.low, found.before + found.high)
        groups.append((f"{name.upper()}, held-out pairs", _pair(found.before, found.after, spread)))
    if "probe_before" in report.metrics:
        values = report.metrics["probe_before"], report.metrics["probe_after"]
        groups.append(("MRR@10, everyday English", _pair(*values)))
    if not groups:
        return ""
    asked = (
        f"Each of {report.queries:,} held-out texts has to find what belongs to it among {report.documents:,} texts. "
        "The line over a bar is where 95 % of resamples lie."
    )
    speed = report.metrics.get("speed_ratio")
    took = f"<p>A batch takes {speed:.2f} times as long as before.</p>" if speed is not None else ""
    return f"<h2>What it finds</h2><p>{asked}</p>{bar_chart(groups, 'Retrieval before and after')}{took}"


def _pair(before: float, after: float, spread: tuple[float | None, float | None] = (None, None)) -> list[Bar]:
    return [Bar("live", before), Bar("candidate", after, *spread, strong=True)]


def _examples(examples: list[Example]) -> str:
    if not examples:
        return ""
    rows = [
        (
            f'<code>{escape(each.query)}</code><br><span class="soft">{escape(each.file)}</span>',
            f"{each.before:,} &rarr; {each.after:,}",
        )
        for each in examples
    ]
    table = _table(("held-out text, and where what it should find stands", "rank"), rows)
    return f"<h2>Where it changed most</h2><p>Risen most, then fallen most.</p>{table}"


def _drift(report: Report) -> str:
    if report.drift is None:
        return ""
    found = report.drift
    chart = histogram(
        found.edges,
        found.counts,
        "Cosine of the old and the new vector of a text",
        (("median", found.cosine_p50), ("5th percentile", found.cosine_p5)),
    )
    return (
        "<h2>How far the vectors moved</h2><p>Cosine of the live and the candidate's vector of the same text, "
        f"for all held-out texts. Of the ten nearest texts of each, {_in_ten(found.overlap)} stay the same.</p>"
        f"{chart}"
    )


def _reindex(report: Report) -> str:
    """What users with stored vectors want to know."""
    if report.reindex is None:
        return ""
    cost = report.reindex
    rows = [_reach("embedded anew", cost.new), _reach("as they are", cost.old), _reach("with the map", cost.mapped)]
    return (
        "<h2>What a re-index costs</h2><p>Vectors that were stored before, searched with new queries: of the ten "
        f"nearest texts, {_in_ten(cost.old.overlap)} stay the same as with new vectors; with the map "
        f"(<code>map_from_parent.safetensors</code>, stored @ map), {_in_ten(cost.mapped.overlap)} do. The map is "
        "judged on texts that it was not fitted on.</p>"
        + _table(("stored vectors", "nearest the same", "NDCG@10"), rows)
    )


def _reach(name: str, reach: Reach) -> tuple[str, str, str]:
    return name, f"{reach.overlap:.1%}", f"{reach.ndcg:.3f}"


def _in_ten(share: float) -> str:
    return f"{10 * share:.1f}"


def _training(report: Report) -> str:
    points = [(event.step, event.loss) for event in report.history if isinstance(event, Trained)]
    seen = [event for event in report.history if isinstance(event, Evaluated)]
    rows = [(f"epoch {event.epoch:g}", escape(_metrics(event.metrics))) for event in seen]
    curve = line_chart(points, "Loss of the training", "step") if points else ""
    table = _table((), rows) if rows else ""
    return f"<h2>The training</h2>{'<p>Loss by step.</p>' if points else ''}{curve}{table}" if points or rows else ""


def _data(data: Manifest | None) -> str:
    if data is None:
        return ""
    rows = [
        ("pairs", f"{data.pairs:,}, {data.held_out:,} of them held out"),
        ("from", escape(f"{data.source}{f' at {data.commit}' if data.commit else ''}, {data.files:,} files")),
        ("kinds", escape(_counts(data.kinds))),
        ("languages", escape(_counts(data.languages))),
        ("files left out", escape(_counts(data.skipped))),
        ("functions and classes left out for a secret", f"{data.secrets:,}" if data.secrets else ""),
    ]
    return f"<h2>The data</h2>{_table((), [(name, value) for name, value in rows if value])}"


def _settings(report: Report) -> str:
    settings = report.options.model_dump() | report.limits.model_dump()
    rows = [
        (escape(name.replace("_", " ")), escape(str(value))) for name, value in settings.items() if value is not None
    ]
    return f"<h2>Options and limits</h2>{_table((), rows)}"


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())


def _counts(counts: dict[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {count:,}" for name, count in ordered)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """head: as text, empty for a list of names and values; rows: as HTML. With a head the last column holds numbers."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f'<table class="{"numbers" if head else "names"}">{f"<tr>{top}</tr>" if top else ""}{body}</table>'
