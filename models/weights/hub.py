"""Finds the folder of a catalogue entry's files: named in the entry, in an installed package, or in the Hub's cache."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from ..catalogue import GraphDtype, ModelSpec
from ..errors import ModelUnavailable
from .hub_cache import cached_snapshot
from .hub_pull import fetch_texts, file_names, pull
from .model_files import weight_files

__all__ = ["fetch_texts", "file_names", "from_hub", "is_present", "locate", "pull"]


def locate(spec: ModelSpec, download: bool = True, dtype: GraphDtype | None = None) -> Path:
    """The folder of a model's files; a model of the Hub that is not cached is downloaded first, if that is allowed.

    For a cached model no network is asked. dtype: which ONNX graph is needed. Raises ModelUnavailable, and what pull
    raises.
    """
    if from_hub(spec):
        folder = cached_snapshot(spec, dtype)
        if folder is not None and _is_complete(spec, folder, dtype):
            return folder
        if download:
            return pull(spec, dtype).folder
        graph = f" --dtype {dtype}" if dtype and spec.served_by == "onnx" else ""
        reason = f"its weights are not, or not all, on this machine; fetch them: mlbus models pull {spec.id}{graph}"
    elif folder := _local_folder(spec):
        return folder
    elif spec.folder is not None:
        reason = f"there is no folder {spec.folder}; correct `folder` in its entry"
    elif spec.package is not None:
        step = f"install {spec.package}, or correct `package` in its entry"
        reason = f"its package is not installed, or holds no model; {step}"
    else:
        reason = "its entry names no source of weights; give it a folder or a repository"
    raise ModelUnavailable(spec.id, reason)


def is_present(spec: ModelSpec, dtype: GraphDtype | None = None) -> bool:
    """Whether all files that serving needs are on this machine; no network is asked. dtype None: of any ONNX graph."""

    def complete(graph: GraphDtype | None) -> bool:
        folder = cached_snapshot(spec, graph) if from_hub(spec) else _local_folder(spec)
        return folder is not None and _is_complete(spec, folder, graph)

    return any(map(complete, (dtype,) if dtype or spec.served_by != "onnx" else tuple(spec.onnx_files)))


def from_hub(spec: ModelSpec) -> bool:
    """Whether the weights come from the Hub: the entry names no folder, and its package is not installed."""
    return spec.repository is not None and spec.folder is None and _local_folder(spec) is None


def _is_complete(spec: ModelSpec, folder: Path, dtype: GraphDtype | None) -> bool:
    with suppress(ModelUnavailable):
        return bool(weight_files(spec, folder, dtype))
    return False


def _local_folder(spec: ModelSpec) -> Path | None:
    """The folder that the entry names, else that of its package; None if it is not there."""
    if spec.folder is not None:
        folder = spec.folder.expanduser()
        return folder if folder.is_dir() else None
    try:
        package = find_spec(spec.package) if spec.package else None  # imports parent packages alone
    except ModuleNotFoundError:
        package = None
    places = [Path(place) for place in (package.submodule_search_locations or ())[:1]] if package else []
    folders = [folder for own in places for folder in (own / "model", own)]
    return next((folder for folder in folders if (folder / (spec.gguf or "config.json")).is_file()), None)
