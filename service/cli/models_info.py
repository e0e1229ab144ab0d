"""`mlbus models info`: all that is known of one model without asking anybody."""

from typing import Any

from models import hub
from models.cache import LoadCache
from models.catalogue import OF_EMBEDDINGS, GraphDtype, ModelSpec, load_catalogue
from models.errors import ModelError
from models.versions import live_version, versions
from models.weights import check_weights, weight_files

from ..config import Settings
from .models import licence_text
from .models_pull import size_bytes, source_of
from .output import err, out, print_json
from .prompts import prompts_of


def print_info(settings: Settings, model: str, *, as_json: bool) -> None:
    """Print the entry and what is on this machine. Raises UnknownModel, BadEntry."""
    spec = load_catalogue(settings.catalogue).get(model)
    facts = {
        "licence": None,
        "commercial": None,
        **spec.model_dump(mode="json", exclude_none=True, exclude=_foreign(spec)),
        **_prompts(spec),
        "source": source_of(spec) if spec.has_source else None,
        "present": hub.is_present(spec),
        "weights": _weights(spec, LoadCache(settings.cache_dir)),
        "versions": list(versions(settings.checkpoints_dir, model)),
        "live": live_version(settings.checkpoints_dir, model),
    }
    if as_json:
        print_json(facts)
        return
    _show(facts)


def _foreign(spec: ModelSpec) -> set[str]:
    """What an entry has only by default, for models of the other kind."""
    return OF_EMBEDDINGS - spec.model_fields_set if spec.kind == "generation" else set()


def _prompts(spec: ModelSpec) -> dict[str, Any]:
    try:
        known = prompts_of(spec)
    except ModelError as error:
        err.print(str(error), markup=False)
        return {}
    return {"prompts": known.by_name, **({"default_prompt": known.default} if known.default else {})}


def _weights(spec: ModelSpec, cache: LoadCache) -> list[dict[str, Any]]:
    """One item for the safetensors, or one for each ONNX graph."""
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
    hidden = ["weights", "commercial", "licence", "sha256"]
    hidden += ["onnx_files"] if facts["served_by"] == "torch" else []
    rows = {
        **{name: _text(value) for name, value in facts.items() if name not in hidden and value not in (None, {}, [])},
        "licence": licence_text(facts),
    }
    for weights in facts["weights"]:
        rows["weights" + (f" {weights['dtype']}" if weights["dtype"] else "")] = _weights_text(weights)
    width = max(map(len, rows))
    for name, text in rows.items():
        out.print(f"{name:<{width}}  {text}", markup=False)


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
