"""`mlbus models pull`: fetch what is not here, verify it, and show under which licence it came."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from models.catalogue import GraphDtype, ModelSpec, load_catalogue
from models.errors import BadEntry
from models.loading.support import require_not_refused
from models.weights import gguf, hub
from models.weights.hub_pull import OnBytes, OnStep
from models.weights.model_files import check_weights, has_gguf

from ..config import Settings
from .models import licence_text
from .output import err, out, print_json


def pull_models(settings: Settings, models: Sequence[str], dtype: GraphDtype | None, *, as_json: bool) -> None:
    """Fetch each, in order. Raises UnknownModel and BadEntry before anything is fetched, ModelError."""
    catalogue = load_catalogue(settings.catalogue)
    specs = [catalogue.get(model) for model in dict.fromkeys(models)]
    for spec in specs:
        _require_graph(spec, dtype)
    rows = []
    for spec in specs:
        row = pull_model(spec, dtype if spec.served_by == "onnx" else None, settings.cache_dir)
        rows.append(row)
        _note(spec, row)
        if not as_json:
            out.print(f"{spec.id}  {row['folder']}  licence: {licence_text(row)}", markup=False)
    if as_json:
        print_json(rows)


def _require_graph(spec: ModelSpec, dtype: GraphDtype | None) -> None:
    if spec.served_by == "onnx" and dtype is not None and dtype not in spec.onnx_files:
        raise BadEntry(spec.id, f"has no graph in {dtype}; onnx_files has {', '.join(spec.onnx_files)}")


def pull_model(spec: ModelSpec, dtype: GraphDtype | None, cache: Path) -> dict[str, Any]:
    """Fetch a model, or look through the folder that it is in and convert it if need be -> what `--json` prints of
    it."""
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
    """Who hears of steps and bytes: for a person one line that vanishes, else nobody."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, TimeRemainingColumn(), console=err, transient=True, disable=not err.is_terminal)
    task = progress.add_task(spec.id, total=None)
    with progress:
        yield (
            lambda step: progress.update(task, description=escape(f"{spec.id}: {step}")),
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def _note(spec: ModelSpec, row: dict[str, Any]) -> None:
    if row["source"] != "hub":
        err.print(f"{spec.id}: nothing to fetch, it is in a {row['source']}", markup=False)
    if spec.commercial is False:
        err.print(f"{spec.id}: its licence, {spec.licence}, forbids commercial use", markup=False)


def source_of(spec: ModelSpec) -> str:
    """Where a model's weights are on this machine: folder, package or hub."""
    if hub.from_hub(spec):
        return "hub"
    return "folder" if spec.folder is not None else "package"


def size_bytes(folder: Path, names: Sequence[str]) -> int:
    """What files of a folder take."""
    return sum((folder / name).stat().st_size for name in names)
