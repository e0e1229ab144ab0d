"""`mlbus models pull` and `mlbus models prune`: fetch, verify and delete weights."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from models.catalogue import GraphDtype, ModelSpec, load_catalogue
from models.errors import BadEntry, ModelUnavailable
from models.loading.support import require_not_refused
from models.weights import gguf, hub
from models.weights.hub_cache import Survey, survey
from models.weights.hub_pull import OnBytes, OnStep
from models.weights.model_files import check_weights, has_gguf, next_step

from ..settings import Settings, read_settings
from .options import Config, Json
from .output import err, licence_text, out, print_json

PROMPTS_FILE = "config_sentence_transformers.json"


def pull(
    model: Annotated[list[str], typer.Argument(metavar="MODEL", help="Ids of the catalogue.")],
    dtype: Annotated[
        GraphDtype | None,
        typer.Option(help="For ONNX models: which graph.", show_default="the entry's own"),
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fetch models from the Hub, as far as they are not here, and verify their files; show their licences."""
    settings = read_settings(config)
    catalogue = load_catalogue(settings.catalogue)
    specs = [catalogue.get(name) for name in dict.fromkeys(model)]
    for spec in specs:
        _require_graph(spec, dtype)
    rows = []
    for spec in specs:
        row = pull_model(spec, dtype if spec.served_by == "onnx" else None, settings.cache_dir)
        rows.append(row)
        _note(spec, row)
        if not as_json:
            out.print(f"{spec.id}  {row['folder']}  licence: {licence_text(row)}")
    if as_json:
        print_json(rows)


def _require_graph(spec: ModelSpec, dtype: GraphDtype | None) -> None:
    if spec.served_by == "onnx" and dtype is not None and dtype not in spec.onnx_files:
        raise BadEntry(spec.id, f"has no graph in {dtype}; onnx_files has {', '.join(spec.onnx_files)}")


def pull_model(spec: ModelSpec, dtype: GraphDtype | None, cache: Path) -> dict[str, Any]:
    """Fetch a model, or verify its folder and convert it if need be -> the fields that `--json` prints."""
    if hub.from_hub(spec):
        require_not_refused(spec)
        with _shown(spec) as (on_step, on_bytes):
            pulled = hub.pull(spec, dtype, on_step, on_bytes)
        folder, fetched, licence = pulled.folder, pulled.fetched_bytes, spec.licence or pulled.licence
    else:
        folder, fetched, licence = hub.locate(spec, download=False), 0, spec.licence
        sha256 = check_weights(spec, folder, dtype=dtype)
        if has_gguf(spec, folder):
            with _shown(spec) as (on_step, _):
                folder = gguf.converted(spec, folder / str(spec.gguf), sha256, cache, on_step)
    return {
        "id": spec.id,
        "source": source_of(spec),
        "folder": str(folder),
        "fetched_bytes": fetched,
        "licence": licence,
        "commercial": spec.commercial,
    }


@contextmanager
def _shown(spec: ModelSpec) -> Iterator[tuple[OnStep, OnBytes]]:
    """Callbacks for steps and bytes, which show a progress bar on a terminal."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal)
    task = progress.add_task(spec.id, total=None)
    with progress:
        yield (
            lambda step: progress.update(task, description=f"{spec.id}: {step}"),
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def _note(spec: ModelSpec, row: dict[str, Any]) -> None:
    if row["source"] != "hub":
        err.print(f"{spec.id}: nothing to fetch, it is in a {row['source']}")
    if spec.commercial is False:
        err.print(f"{spec.id}: its licence, {spec.licence}, forbids commercial use")


def source_of(spec: ModelSpec) -> str:
    """The kind of place of a model's weights: folder, package or hub."""
    if hub.from_hub(spec):
        return "hub"
    return "folder" if spec.folder is not None else "package"


def origin_of(model: str, source: str) -> dict[str, str]:
    """The field of an entry that says where its weights are. Raises BadEntry."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return {"folder": str(folder.resolve())}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        return {"repository": source}
    raise BadEntry(model, f"{source} is neither a folder that is there nor OWNER/NAME of a repository on the Hub")


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a model.

    by_name: their texts. default: the name of the prompt for requests that name none. complete: whether the model's
    folder is on this machine and was read.
    """

    by_name: Mapping[str, str]
    default: str | None
    complete: bool


def prompts_of(spec: ModelSpec) -> Prompts:
    """The prompts of a model's entry and of its folder. Raises ModelUnavailable if the file there cannot be read."""
    try:
        path = hub.locate(spec, download=False) / PROMPTS_FILE
    except ModelUnavailable:
        return Prompts(spec.prompts, spec.default_prompt, complete=False)
    try:
        stated = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        own = {name: text or "" for name, text in (stated.get("prompts") or {}).items()}
        return Prompts(own | spec.prompts, spec.default_prompt or stated.get("default_prompt_name"), complete=True)
    except (OSError, ValueError, AttributeError) as error:
        raise ModelUnavailable(spec.id, f"its {PROMPTS_FILE} cannot be read ({error}); {next_step(spec)}") from error


def prune(
    model: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models whose downloaded weights go; none: what no entry uses."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Free disk space: delete downloads that no entry uses any more, or those of the models named.

    Touches nothing but the catalogue's repositories in the Hub's cache: no folder of yours, no package.
    """
    found = _survey(read_settings(config), model or [])
    for reason in found.unreadable:
        err.print(f"left alone: {reason}")
    if found.superfluous and not dry_run and not yes:
        _show(found, err)
        _confirm()
    done = bool(found.superfluous) and not dry_run
    if done:
        for one in found.superfluous:
            one.remove()
    if as_json:
        print_json({"deleted": done, "size_bytes": found.size_bytes, "repositories": _facts(found)})
        return
    _show(found, out)
    size = f"{found.size_bytes} bytes ({found.size_bytes / 1e9:.2f} GB)"
    out.print(f"deleted {size}" if done else f"would delete {size}" if found.superfluous else "nothing to delete")


def _survey(settings: Settings, models: Sequence[str]) -> Survey:
    """Downloads that no entry uses; also those of shipped entries that the user has replaced."""
    catalogue = load_catalogue(settings.catalogue)
    named = [catalogue.get(model) for model in models]
    considered = named or [*catalogue, *load_catalogue()]
    kept = [spec for spec in catalogue if spec.id not in models]
    return survey({spec.repository for spec in considered if spec.repository is not None}, kept)


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise typer.BadParameter("nobody is there to be asked: give --yes, or --dry-run")
    typer.confirm("Delete it?", abort=True, err=True)


def _facts(found: Survey) -> list[dict[str, Any]]:
    return [
        {
            "repository": one.repository,
            "revisions": one.revisions,
            "unfinished": len(one.unfinished),
            "size_bytes": one.size_bytes,
        }
        for one in found.superfluous
    ]


def _show(found: Survey, console: Console) -> None:
    for one in found.superfluous:
        parts = [f"revision {revision[:12]}" for revision in one.revisions]
        parts += [f"{len(one.unfinished)} unfinished downloads"] if one.unfinished else []
        console.print(f"{one.repository}: {', '.join(parts)}, {one.size_bytes / 1e9:.2f} GB")
