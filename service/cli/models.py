"""`mlbus models`: its sub-commands, and the list of models, which also works without NATS."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.table import Table

from models.catalogue import ModelSpec, load_catalogue
from models.weights import hub
from subjects.client.discovery import ask_workers

from ..bus.errors import BusError
from ..settings import read_settings
from .ask import STALL_S, Connection, ask
from .discover import loaded_models
from .lazy import LazyCommand, group_of, require_none_given
from .options import Config, Json, NatsUrl, Timeout
from .output import err, licence_text, out, print_json

_WORKERS = "Ask workers; what changes them needs the role admin"

_COMMANDS = (
    LazyCommand(
        "pull",
        "models_weights:pull",
        "Fetch models from the Hub, as far as they are not here, and verify their files; show their licences.",
    ),
    LazyCommand(
        "info",
        "models_info:info",
        "Show all that is known of a model: its entry, where its weights are and which, its versions.",
    ),
    LazyCommand(
        "history",
        "models_info:history",
        "Show a model's versions on this machine, newest first: what they came of, their verdicts, which one is live.",
    ),
    LazyCommand(
        "prune",
        "models_weights:prune",
        "Free disk space: delete downloads that no entry uses any more, or those of the models named.",
    ),
    LazyCommand(
        "add",
        "models_add:add",
        "Add a model of your own to the settings file, once it has been loaded and has passed its tests.",
    ),
    LazyCommand(
        "check",
        "models_check:check",
        "Show how well a model does: an embedding model finds code, under each mask and end token that it allows.",
    ),
    LazyCommand(
        "plan",
        "models_plan:plan",
        "Show which models fit into a budget of memory, at which precision, and what would be evicted.",
    ),
    LazyCommand(
        "load",
        "models_workers:load",
        "Have workers load a model, downloaded first where it is not on their machine.",
        _WORKERS,
    ),
    LazyCommand("unload", "models_workers:unload", "Have workers take a model out of memory.", _WORKERS),
    LazyCommand(
        "reload",
        "models_workers:reload",
        "Have workers swap a model's weights, without a request that fails.",
        _WORKERS,
    ),
    LazyCommand(
        "promote",
        "models_workers:promote",
        "Have all workers serve a version that has passed, prove it there, or go back to the one before.",
        _WORKERS,
    ),
    LazyCommand(
        "recommended",
        "models_workers:recommended",
        "Show the model for each use, and what to take where it is not on the worker's machine.",
        _WORKERS,
    ),
)

models_app = typer.Typer(
    help="The catalogue and the weights on this machine. Alone: the list.",
    cls=group_of(*_COMMANDS),
    invoke_without_command=True,
)


@models_app.command("list")
@models_app.callback()
def show_list(
    context: typer.Context,
    config: Config = None,
    as_json: Json = False,
    nats_url: NatsUrl = None,
    timeout: Timeout = 30.0,
) -> None:
    """Show the catalogue: which models there are, which are here, and which worker has them loaded."""
    if context.invoked_subcommand is not None:
        require_none_given(context)
        return
    settings = read_settings(config, nats_url=nats_url)
    catalogue = load_catalogue(settings.catalogue)
    loaded, reason = _loaded(Connection(settings.nats_url, timeout))
    rows = [_row(spec, loaded) for spec in catalogue]
    if as_json:
        print_json(rows)
        return
    _show(rows)
    if reason:
        err.print(f"not known where they are loaded: {reason}", markup=False)


def _loaded(connection: Connection) -> tuple[Mapping[str, Sequence[str]] | None, str]:
    """Model id -> ids of the workers that have it loaded; None and the reason if no server answers."""
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
