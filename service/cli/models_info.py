"""`mlbus models info` and `mlbus models history`: the facts of one model, and its versions.

If the configuration of a model is not on this machine, its small files are read from the Hub.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from models.catalogue import OF_EMBEDDINGS, Catalogue, GraphDtype, ModelSpec, load_catalogue
from models.errors import BadEntry, ModelError
from models.loading.load_cache import LoadCache
from models.loading.support import support
from models.weights import hub, version_history
from models.weights.model_files import MODULES, check_weights, weight_files
from models.weights.version_history import Version
from models.weights.versions import live_version, versions

from ..settings import Settings, read_settings
from .models_weights import origin_of, prompts_of, size_bytes, source_of
from .options import Config, Json, ModelId
from .output import err, licence_text, out, print_json

_MRR = ("mrr@10_before", "mrr@10_after")
_HEADINGS = ("version", "made", "from", "pairs", "MRR@10", "verdict", "", "size")


def info(model: ModelId, config: Config = None, as_json: Json = False) -> None:
    """Show all that is known of a model: its entry, where its weights are and which, its versions."""
    print_info(read_settings(config), model, as_json=as_json)


def print_info(settings: Settings, model: str, *, as_json: bool) -> None:
    """Print the entry of a model, folder or repository, and what is on this machine.

    Raises UnknownModel, BadEntry, or ModelUnavailable if the Hub does not answer for a repository.
    """
    catalogue = load_catalogue(settings.catalogue)
    spec = _spec(catalogue, model)
    facts = {
        "licence": None,
        "commercial": None,
        **spec.model_dump(mode="json", exclude_none=True, exclude=_foreign(spec)),
        **_prompts(spec),
        "source": source_of(spec) if spec.has_source else None,
        "support": asdict(support(spec)),
        "present": hub.is_present(spec),
        "weights": _weights(spec, LoadCache(settings.cache_dir)),
        **(_versions(settings.checkpoints_dir, model) if model in catalogue.specs else {}),
    }
    if as_json:
        print_json(facts)
        return
    _show(facts)


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


def _versions(checkpoints_dir: Path, model: str) -> dict[str, Any]:
    return {"versions": list(versions(checkpoints_dir, model)), "live": live_version(checkpoints_dir, model)}


def _foreign(spec: ModelSpec) -> set[str]:
    """The fields that an entry has only by default, which are for models of the other kind."""
    return OF_EMBEDDINGS - spec.model_fields_set if spec.kind == "generation" else set()


def _prompts(spec: ModelSpec) -> dict[str, Any]:
    try:
        known = prompts_of(spec)
    except ModelError as error:
        err.print(str(error), markup=False)
        return {}
    return {"prompts": known.by_name, **({"default_prompt": known.default} if known.default else {})}


def _weights(spec: ModelSpec, cache: LoadCache) -> list[dict[str, Any]]:
    """One item for safetensors, or one for each ONNX graph."""
    dtypes: list[GraphDtype | None] = [*spec.onnx_files] if spec.served_by == "onnx" else [None]
    return [_copy(spec, dtype, cache) for dtype in dtypes]


def _copy(spec: ModelSpec, dtype: GraphDtype | None, cache: LoadCache) -> dict[str, Any]:
    try:
        folder = hub.locate(spec, download=False, dtype=dtype)
        files = weight_files(spec, folder, dtype)
        return {
            "dtype": dtype,
            "folder": str(folder),
            "files": files,
            "size_bytes": size_bytes(folder, files),
            "sha256": check_weights(spec, folder, cache.sha256, dtype),
            "problem": None,
        }
    except ModelError as error:
        return {"dtype": dtype, "problem": str(error)}


def _show(facts: dict[str, Any]) -> None:
    hidden = ["weights", "support", "commercial", "licence", "sha256"]
    hidden += ["onnx_files"] if facts["served_by"] == "torch" else []
    rows = {
        **{name: _text(value) for name, value in facts.items() if name not in hidden and value not in (None, {}, [])},
        "licence": licence_text(facts),
        "served": _support_text(facts["support"]),
    }
    for weights in facts["weights"]:
        rows["weights" + (f" {weights['dtype']}" if weights["dtype"] else "")] = _weights_text(weights)
    width = max(map(len, rows))
    for name, text in rows.items():
        out.print(f"{name:<{width}}  {text}", markup=False)


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
        print_json([_facts(version) for version in found])
        return
    table = Table(box=None, pad_edge=False)
    for heading in _HEADINGS:
        table.add_column(heading, no_wrap=heading == "version", overflow="fold")
    for version in found:
        table.add_row(*_cells(version))
    out.print(table)
    for version in found:
        for why in (*version.reasons, *([version.problem] if version.problem else [])):
            out.print(f"{version.name}: {why}", markup=False)


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
