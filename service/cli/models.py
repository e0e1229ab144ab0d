"""`mlbus models list`: the catalogue beside what is here and what workers have loaded. Works without NATS."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from models.catalogue import ModelSpec, load_catalogue
from models.weights import hub
from subjects.client.discovery import ask_workers

from ..bus.errors import BusError
from ..config import Settings
from .ask import STALL_S, Connection, ask
from .output import err, out, print_json
from .ping import loaded_models


def print_models(settings: Settings, timeout_s: float, *, as_json: bool) -> None:
    """Print every entry. Raises BadEntry if one of the user's own is not usable."""
    catalogue = load_catalogue(settings.catalogue)
    loaded, why_not = _loaded(Connection(settings.nats_url, timeout_s))
    rows = [_row(spec, loaded) for spec in catalogue]
    if as_json:
        print_json(rows)
        return
    _show(rows)
    if why_not:
        err.print(f"not known where they are loaded: {why_not}", markup=False)


def _loaded(connection: Connection) -> tuple[Mapping[str, Sequence[str]] | None, str]:
    """Model id -> ids of the workers that have it loaded; None, and the reason, where no server could be asked."""
    try:
        answers = ask(connection, lambda nc: ask_workers(nc, "PING", connection.timeout_s, STALL_S))
    except BusError as error:
        return None, str(error)
    workers: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        for model in loaded_models(answer):
            workers[model].append(answer.body.get("id", ""))
    return workers, ""


def _row(spec: ModelSpec, loaded: Mapping[str, Sequence[str]] | None) -> dict[str, Any]:
    return {
        "id": spec.id,
        "kind": spec.kind,
        "dimensions": spec.dimensions,
        "licence": spec.licence,
        "commercial": spec.commercial,
        "size_gb": spec.size_gb,
        "present": hub.is_present(spec),
        "loaded_by": None if loaded is None else list(loaded.get(spec.id, ())),
    }


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("id", "kind", "dims", "licence", "here", "loaded by"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("id", "kind"))
    for row in rows:
        table.add_row(
            row["id"],
            row["kind"],
            str(row["dimensions"] or "-"),
            licence_text(row),
            "yes" if row["present"] else "no" + (f", {row['size_gb']} GB" if row["size_gb"] else ""),
            ", ".join(row["loaded_by"] or ()) or "-",
        )
    out.print(table)


def licence_text(facts: Mapping[str, Any]) -> str:
    """The licence for people, marked where it forbids commercial use."""
    return (facts["licence"] or "unknown") + (" (non-commercial)" if facts["commercial"] is False else "")
