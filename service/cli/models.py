"""`mlbus models`: the list of models, which also works without NATS, the facts of one of them, and its versions.

If the configuration of a model is not on this machine, `info` reads its small files from the Hub.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from models.catalogue import OF_EMBEDDINGS, Catalogue, GraphDtype, ModelSpec, load_catalogue
from models.errors import BadEntry, ModelError
from models.loading.load_cache import LoadCache
from models.loading.support import support
from models.weights import hub, version_history
from models.weights.model_files import MODULES, check_weights, weight_files
from models.weights.version_history import Version
from models.weights.versions import live_version, versions
from subjects.client.discovery import ask_workers

from ..bus.errors import BusError
from ..settings import read_settings
from .ask import STALL_S, Connection, ask
from .commands import ModelsCommands
from .models_weights import origin_of, prompts_of, source_of
from .options import Config, Json, ModelId, NatsUrl, Timeout, require_none_given
from .output import err, licence_text, out, print_json, table_of
from .workers import loaded_models

_MRR = ("mrr@10_before", "mrr@10_after")

models_app = typer.Typer(
    help="The catalogue and the weights on this machine. Alone: the list.",
    cls=ModelsCommands,
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
    headings = ("id", "kind", "dims", "licence", "here", "loaded by")
    out.print(table_of(headings, map(_row_cells, rows), whole=("id", "kind")))
    if reason:
        err.print(f"not known where they are loaded: {reason}")


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


def _row_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        row["id"],
        row["kind"],
        str(row["dimensions"] or "-"),
        licence_text(row),
        "yes" if row["present"] else "no" + (f", {row['size_gb']} GB" if row["size_gb"] else ""),
        ", ".join(row["loaded_by"] or ()) or "-",
    )


def info(model: ModelId, config: Config = None, as_json: Json = False) -> None:
    """Show all that is known of a model: its entry, where its weights are and which, its versions."""
    settings = read_settings(config)
    catalogue = load_catalogue(settings.catalogue)
    spec = _spec(catalogue, model)
    dtypes: list[GraphDtype | None] = [*spec.onnx_files] if spec.served_by == "onnx" else [None]
    facts = {
        "licence": None,
        "commercial": None,
        **spec.model_dump(mode="json", exclude_none=True, exclude=_foreign(spec)),
        **_prompts(spec),
        "source": source_of(spec) if spec.has_source else None,
        "support": asdict(support(spec)),
        "present": hub.is_present(spec),
        "weights": [_copy(spec, dtype, LoadCache(settings.cache_dir)) for dtype in dtypes],
    }
    if model in catalogue.specs:
        folder = settings.checkpoints_dir
        facts |= {"versions": list(versions(folder, model)), "live": live_version(folder, model)}
    if as_json:
        print_json(facts)
        return
    rows = _info_rows(facts)
    width = max(map(len, rows))
    for name, text in rows.items():
        out.print(f"{name:<{width}}  {text}")


def _spec(catalogue: Catalogue, model: str) -> ModelSpec:
    """The entry of this id, or one for a folder or a repository that has none."""
    if model in catalogue.specs:
        return catalogue.get(model)
    try:
        origin = origin_of(model, model)
    except BadEntry:
        return catalogue.get(model)  # raises UnknownModel with the known ids
    name = re.sub(r"[^A-Za-z0-9]+", "-", Path(model).name).strip("-")[:64] or "model"
    spec = ModelSpec.model_validate({"id": name, "kind": "generation", **origin})
    files = hub.file_names(spec) if spec.folder is None else [path.name for path in spec.folder.iterdir()]
    return spec.model_copy(update={"kind": "embedding"}) if MODULES in files else spec


def _foreign(spec: ModelSpec) -> set[str]:
    """The fields that an entry has only by default, which are for models of the other kind."""
    return OF_EMBEDDINGS - spec.model_fields_set if spec.kind == "generation" else set()


def _prompts(spec: ModelSpec) -> dict[str, Any]:
    try:
        known = prompts_of(spec)
    except ModelError as error:
        err.print(str(error))
        return {}
    return {"prompts": known.by_name, **({"default_prompt": known.default} if known.default else {})}


def _copy(spec: ModelSpec, dtype: GraphDtype | None, cache: LoadCache) -> dict[str, Any]:
    """The facts of a model's safetensors, or of its ONNX graph in a dtype."""
    try:
        folder = hub.locate(spec, download=False, dtype=dtype)
        files = weight_files(spec, folder, dtype)
        return {
            "dtype": dtype,
            "folder": str(folder),
            "files": files,
            "size_bytes": sum((folder / name).stat().st_size for name in files),
            "sha256": check_weights(spec, folder, cache.sha256, dtype),
            "problem": None,
        }
    except ModelError as error:
        return {"dtype": dtype, "problem": str(error)}


def _info_rows(facts: dict[str, Any]) -> dict[str, str]:
    hidden = ["weights", "support", "commercial", "licence", "sha256"]
    hidden += ["onnx_files"] if facts["served_by"] == "torch" else []
    weights = {" ".join(filter(None, ("weights", one["dtype"]))): _weights_text(one) for one in facts["weights"]}
    return {
        **{name: _text(value) for name, value in facts.items() if name not in hidden and value not in (None, {}, [])},
        "licence": licence_text(facts),
        "served": _support_text(facts["support"]),
        **weights,
    }


def _support_text(found: dict[str, Any]) -> str:
    answer = {True: "yes", False: "no", None: "not known"}[found["served"]]
    return f"{answer}: {found['reason']}" if found["reason"] else answer


def _weights_text(weights: dict[str, Any]) -> str:
    if weights["problem"]:
        return str(weights["problem"])
    size = f"{weights['size_bytes'] / 1e9:.2f} GB"
    return f"{weights['folder']}: {', '.join(weights['files'])} ({size}), SHA-256 {weights['sha256']}"


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={item!r}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def history(model: ModelId, config: Config = None, as_json: Json = False) -> None:
    """Show a model's versions on this machine, newest first: what they came of, their verdicts, which one is live."""
    settings = read_settings(config)
    spec = load_catalogue(settings.catalogue).get(model)
    found = version_history.history(settings.checkpoints_dir, spec.id)
    if as_json:
        print_json([_version_facts(version) for version in found])
        return
    headings = ("version", "made", "from", "pairs", "MRR@10", "verdict", "", "size")
    out.print(table_of(headings, map(_version_cells, found), whole=("version",)))
    for version in found:
        for why in (*version.reasons, *([version.problem] if version.problem else [])):
            out.print(f"{version.name}: {why}")


def _version_facts(version: Version) -> dict[str, Any]:
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


def _version_cells(version: Version) -> tuple[str, ...]:
    return (
        version.name,
        f"{version.made_at.astimezone():%Y-%m-%d %H:%M}" if version.made_at else "-",
        version.record.parent if version.record else "-",
        "-" if version.pairs is None else str(version.pairs),
        _change(version.metrics),
        {True: "accepted", False: "rejected", None: "-"}[version.accepted],
        "live" if version.live else "previous" if version.previous else "",
        "-" if version.size_bytes is None else f"{version.size_bytes / 1e9:.2f} GB",
    )


def _change(metrics: dict[str, float]) -> str:
    known = [metrics[name] for name in _MRR if name in metrics]
    return " -> ".join(f"{value:.3f}" for value in known) if len(known) == len(_MRR) else "-"
