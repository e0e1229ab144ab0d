"""`mlbus models add`: loads a model of the user's own, then appends its entry to the settings file."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel

from models.catalogue import Kind, ModelSpec, load_catalogue
from models.errors import BadEntry, ModelError
from models.weights import hub
from models.weights.model_files import require_whole, weight_files

from ..residency.loader import LoadOverrides, ModelLoader
from ..served_model import Facts, facts_of
from ..settings import CONFIG_FILE, BadSettings, Settings, read_settings
from ..settings.toml import as_toml
from .models_weights import origin_of, prompts_of, pull_model
from .options import Config, Json
from .output import err, out, print_json, spinner

GRAPHS = ("onnx/model.onnx", "model.onnx")
"""The paths at which exporters put an fp32 graph."""


class Added(BaseModel):
    """The part of the settings that is appended."""

    catalogue: dict[str, dict[str, Any]]


def add(
    model: Annotated[str, typer.Argument(metavar="ID", help="How it will be called.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, or OWNER/NAME on the Hub.")],
    kind: Annotated[Kind, typer.Option(help="What it does.")] = "embedding",
    served_by: Annotated[
        Literal["torch", "onnx"] | None,
        typer.Option(help="What runs it.", show_default="onnx where it is given a graph or finds only that"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(metavar="REV", help="Commit, tag or branch.", show_default="main")
    ] = None,
    onnx_file: Annotated[
        list[str] | None,
        typer.Option(metavar="[DTYPE=]PATH", help="Graph, by its path in the folder; fp16=PATH for one in fp16."),
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="NAME=TEXT", help="Named prompt; repeat.")] = None,
    default_prompt: Annotated[
        str | None, typer.Option(metavar="NAME", help="The one that is used where none is named.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens that it takes at most.")] = None,
    pooling: Annotated[
        str | None, typer.Option(metavar="NAME", help="mean, cls, lasttoken …; absent: the folder says.")
    ] = None,
    licence: Annotated[str | None, typer.Option(metavar="NAME", help="Its licence.")] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Fetch it if need be, and load it first.")] = True,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Add a model of your own to the settings file, once it has been loaded and has passed its tests."""
    given = {
        "kind": kind,
        "served_by": served_by,
        "revision": revision,
        "max_tokens": max_tokens,
        "pooling": pooling,
        "default_prompt": default_prompt,
        "licence": licence,
        "onnx_files": onnx_file or [],
        "prompts": prompt or [],
    }
    path = config or Path(os.environ.get("MLBUS_CONFIG", CONFIG_FILE))
    settings = read_settings(path) if path.is_file() else Settings()
    if model in settings.catalogue or model in load_catalogue().specs:
        raise BadEntry(model, "is in the catalogue already; choose another id, or change its entry in the settings")
    entry = _entry(model, source, given)
    spec = load_catalogue({model: entry}).get(model)
    _require_known(spec)
    if spec.folder is not None:
        for dtype in spec.onnx_files if spec.served_by == "onnx" else (None,):
            require_whole(spec, spec.folder, weight_files(spec, spec.folder, dtype))
    loaded = _loaded(spec, settings) if check else None
    _append(path, model, entry)
    _tell(path, spec, loaded, as_json=as_json)


def _loaded(spec: ModelSpec, settings: Settings) -> Facts:
    """Fetch a model if need be, load it as a worker would, and free it. Raises ModelError."""
    with spinner() as progress:
        task = progress.add_task(f"{spec.id}: importing torch")
        loader = ModelLoader(settings, lambda step: progress.update(task, description=step))
        options = loader.options(spec, LoadOverrides())
        graph = loader.graph(spec, options)
    try:
        if hub.from_hub(spec) and not hub.is_present(spec, graph):
            pull_model(spec, graph, settings.cache_dir)
        with progress:
            loader.require_room(spec, options)
            model = loader.load(spec, options)
    except ModelError:
        err.print("nothing was added; --no-check adds an entry unloaded")
        raise
    facts = facts_of(model)
    loader.drop(model)
    return facts


def _entry(model: str, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    origin = origin_of(model, source)
    graphs = dict(_graph(one) for one in given["onnx_files"])
    prompts = dict(_prompt(model, one) for one in given["prompts"])
    found = _graph_in(origin.get("folder")) if given["served_by"] != "torch" else {}
    only_graphs = bool(found) and not any(Path(origin["folder"]).rglob("*.safetensors"))
    served_by = given["served_by"] or ("onnx" if graphs or only_graphs else "torch")
    chosen = {"served_by": served_by, "onnx_files": graphs or (found if served_by == "onnx" else {})}
    fields = {**origin, **given, **chosen, "prompts": prompts}
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _require_known(spec: ModelSpec) -> None:
    """Raises BadEntry if the entry names an unknown pooling, or a default prompt that does not exist."""
    from models.encoders.onnx_folder import POOLINGS  # imports torch

    if spec.pooling is not None and spec.pooling not in POOLINGS:
        raise BadEntry(spec.id, f"--pooling takes one of {', '.join(POOLINGS)}, not {spec.pooling!r}")
    known = prompts_of(spec)
    if known.complete and known.default is not None and known.default not in known.by_name:
        reason = f"its default prompt {known.default!r} is none of its prompts: {', '.join(known.by_name) or '-'}"
        raise BadEntry(spec.id, f"{reason}; name one with --default-prompt, or add it with --prompt")


def _graph_in(folder: str | None) -> dict[str, str]:
    """The graph in a folder; the files of a repository are not known before a pull."""
    return next(({"fp32": graph} for graph in GRAPHS if folder and (Path(folder) / graph).is_file()), {})


def _graph(text: str) -> tuple[str, str]:
    dtype, separator, path = text.partition("=")
    return (dtype, path) if separator else ("fp32", text)


def _prompt(model: str, text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise BadEntry(model, f"--prompt takes NAME=TEXT, not {text!r}")
    return name, value


def _append(path: Path, model: str, entry: dict[str, Any]) -> None:
    """Append a table, if the file is still valid with it. Raises BadSettings."""
    before = path.read_text("utf-8") if path.is_file() else ""
    gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
    added = gap + as_toml(Added(catalogue={model: entry})).lstrip("\n")
    try:
        tomllib.loads(before + added)
    except ValueError as error:
        raise BadSettings(
            f"{path} cannot take a table [catalogue.{model}] at its end ({error}); add it by hand"
        ) from None
    with path.open("a", encoding="utf-8") as file:
        file.write(added)


def _tell(path: Path, spec: ModelSpec, loaded: Facts | None, *, as_json: bool) -> None:
    if as_json:
        entry = spec.model_dump(mode="json", exclude_unset=True)
        print_json({"id": spec.id, "settings": str(path), "entry": entry, "loaded": loaded and asdict(loaded)})
        return
    if loaded is not None:
        dimensions = f"{loaded.dimensions} dimensions, " if loaded.dimensions else ""
        size = f"{loaded.memory_bytes / 1e9:.2f} GB"
        facts = f"{loaded.dtype} on {loaded.device}: {dimensions}{loaded.max_tokens} tokens, {size}"
        out.print(f"loaded {spec.id} in {facts}")
        for note in loaded.notes:
            out.print(f"{spec.id} {note}")
    out.print(f"added [catalogue.{spec.id}] to {path}")
    if loaded is None and spec.repository is not None:
        out.print(f"fetch it:  mlbus models pull {spec.id}")
    out.print(f"serve it:  mlbus serve --model {spec.id}")
