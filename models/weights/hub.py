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
    local = _local_folder(spec)
    if local is not None:
        return local
    if spec.folder is not None:
        raise ModelUnavailable(spec.id, f"there is no folder {spec.folder}; correct `folder` in its entry")
    if spec.repository is not None:
        return _from_hub(spec, download, dtype)
    if spec.package is not None:
        reason = f"its package is not installed, or holds no model; install {spec.package}"
        raise ModelUnavailable(spec.id, f"{reason}, or correct `package` in its entry")
    raise ModelUnavailable(spec.id, "its entry names no source of weights; give it a folder or a repository")


def is_present(spec: ModelSpec, dtype: GraphDtype | None = None) -> bool:
    """Whether all files that serving needs are on this machine; no network is asked. dtype None: of any ONNX graph."""
    dtypes = (dtype,) if dtype or spec.served_by != "onnx" else tuple(spec.onnx_files)
    return any(_is_complete(spec, _folder(spec, each), each) for each in dtypes)


def from_hub(spec: ModelSpec) -> bool:
    """Whether the weights come from the Hub: the entry names no folder, and its package is not installed."""
    return spec.repository is not None and spec.folder is None and _local_folder(spec) is None


def _from_hub(spec: ModelSpec, download: bool, dtype: GraphDtype | None) -> Path:
    cached = cached_snapshot(spec, dtype)
    if cached is not None and _is_complete(spec, cached, dtype):
        return cached
    if not download:
        graph = f" --dtype {dtype}" if dtype and spec.served_by == "onnx" else ""
        reason = "its weights are not, or not all, on this machine; fetch them: mlbus models pull"
        raise ModelUnavailable(spec.id, f"{reason} {spec.id}{graph}")
    return pull(spec, dtype).folder


def _is_complete(spec: ModelSpec, folder: Path | None, dtype: GraphDtype | None) -> bool:
    with suppress(ModelUnavailable):
        return folder is not None and bool(weight_files(spec, folder, dtype))
    return False


def _folder(spec: ModelSpec, dtype: GraphDtype | None) -> Path | None:
    return cached_snapshot(spec, dtype) if from_hub(spec) else _local_folder(spec)


def _local_folder(spec: ModelSpec) -> Path | None:
    if spec.folder is not None:
        folder = spec.folder.expanduser()
        return folder if folder.is_dir() else None
    return _package_folder(spec.package, spec.gguf or "config.json") if spec.package else None


def _package_folder(package: str, file: str) -> Path | None:
    """The folder of a package, or `model` in it, whichever has the file. The package itself is not imported."""
    try:
        found = find_spec(package)
    except ModuleNotFoundError:  # a parent package, which is imported
        return None
    if found is None or not found.submodule_search_locations:
        return None
    own = Path(found.submodule_search_locations[0])
    folders = [folder for folder in (own / "model", own) if (folder / file).is_file()]
    return folders[0] if folders else None
