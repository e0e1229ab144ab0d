"""`mlbus models history`: the versions of a model on this machine and what became of each, without asking anybody."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from models.catalogue import load_catalogue
from models.weights.version_history import Version, history

from ..config import Settings
from .output import out, print_json

_MRR = ("mrr@10_before", "mrr@10_after")
_HEADINGS = ("version", "made", "from", "pairs", "MRR@10", "verdict", "", "size")


def print_history(settings: Settings, model: str, *, as_json: bool) -> None:
    """Print the versions, newest first, `base` last, and below them why some were rejected.

    Raises UnknownModel, BadEntry, OSError.
    """
    spec = load_catalogue(settings.catalogue).get(model)
    found = history(settings.checkpoints_dir, spec.id)
    if as_json:
        print_json([_facts(version) for version in found])
        return
    _show(found)


def _facts(version: Version) -> dict[str, Any]:
    record = version.record
    return {
        "name": version.name,
        "created_at": version.made_at,
        "parent": record.parent if record else None,
        "live": version.live,
        "previous": version.previous,
        "accepted": version.accepted,
        "judged": version.judged,
        "reasons": version.reasons,
        "metrics": version.metrics,
        "weights": record.weights_sha256 if record else None,
        "pairs": version.pairs,
        "job": record.job if record else None,
        "size_bytes": version.size_bytes,
        "problem": version.problem,
    }


def _show(found: Sequence[Version]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, no_wrap=heading == "version", overflow="fold")
    for version in found:
        table.add_row(*_cells(version))
    out.print(table)
    for version in found:
        for why in (*version.reasons, *([version.problem] if version.problem else [])):
            out.print(f"{version.name}: {why}", markup=False)


def _cells(version: Version) -> tuple[str, ...]:
    return (
        version.name,
        f"{version.made_at.astimezone():%Y-%m-%d %H:%M}" if version.made_at else "-",
        escape(version.record.parent) if version.record else "-",
        "-" if version.pairs is None else str(version.pairs),
        _change(version.metrics),
        {True: "accepted", False: "rejected", None: "-"}[version.accepted],
        "live" if version.live else "previous" if version.previous else "",
        "-" if version.size_bytes is None else f"{version.size_bytes / 1e9:.2f} GB",
    )


def _change(metrics: dict[str, float]) -> str:
    known = [metrics[name] for name in _MRR if name in metrics]
    return " -> ".join(f"{value:.3f}" for value in known) if len(known) == len(_MRR) else "-"
