"""Weights on disk: where they lie, that they are all there, and that they are the right ones.

Owns the way from a catalogue entry to a checked folder: an installed package, a folder, or the Hugging Face
cache, filled from the Hub at need. Knows nothing of torch. Only safetensors are fetched or accepted; a pickle
can run code when read.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from .catalogue import ModelSpec
from .errors import CorruptWeights, ModelUnavailable

WANTED = ["*.safetensors", "*.json", "*.txt", "*.model"]
UNWANTED = ["*.bin", "*.py", "onnx/*", "openvino/*", "checkpoint-*/*"]
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

DOWNLOAD_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "{repository} asks for consent; accept its licence on the Hub and set HF_TOKEN."),
    (RepositoryNotFoundError, "there is no repository {repository}, or it is private; correct it or set HF_TOKEN."),
    (RevisionNotFoundError, "{repository} has no revision {revision}; correct `revision` in its entry."),
    (
        LocalEntryNotFoundError,
        "{repository} is not in the cache and the Hub is out of reach; connect, or give its entry a `folder`.",
    ),
    (Exception, "{repository} could not be fetched ({error}); check the connection and try again."),
)


def locate(spec: ModelSpec, download: bool = True) -> Path:
    """The folder that holds a model, downloaded first (if allowed) where it comes from the Hub and is not cached.

    HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured by huggingface_hub. Raises ModelUnavailable.
    """
    local = _local_folder(spec)
    if local is not None:
        return local
    if spec.folder is not None:
        raise ModelUnavailable(spec.id, f"there is no folder {spec.folder}; correct `folder` in its entry.")
    if spec.repository is not None:
        return _from_hub(spec.id, spec.repository, spec.revision, download)
    if spec.package is not None:
        raise ModelUnavailable(spec.id, f"its package is not installed; install {spec.package}.")
    raise ModelUnavailable(spec.id, "its entry names no source of weights; give it a folder or a repository.")


def is_present(spec: ModelSpec) -> bool:
    """Whether the weights are on this machine; the network is not asked."""
    if _local_folder(spec) is not None:
        return True
    if spec.repository is None:
        return False
    return isinstance(try_to_load_from_cache(spec.repository, "modules.json", revision=spec.revision), str)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_weights(spec: ModelSpec, folder: Path) -> str:
    """Check that every module's weights are safetensors and that pinned files are the right ones.

    Returns the SHA-256 that identifies the weights: of the one file, or of the list of names and digests where
    there are several. Raises ModelUnavailable where there is nothing safe to read, CorruptWeights.
    """
    names = _weight_files(spec, folder)
    digests = {name: file_sha256(folder / name) for name in names}
    for name, expected in spec.sha256.items():
        found = digests.get(name) or (file_sha256(folder / name) if (folder / name).is_file() else "nothing")
        if found != expected:
            raise CorruptWeights(spec.id, name, expected, found)
    if len(names) == 1:
        return digests[names[0]]
    listing = "".join(f"{name} {digests[name]}\n" for name in names)
    return hashlib.sha256(listing.encode()).hexdigest()


def _weight_files(spec: ModelSpec, folder: Path) -> list[str]:
    """Paths in the folder, sorted, of the safetensors of all modules that modules.json lists."""
    found: list[str] = []
    for module in _module_folders(spec, folder):
        files = sorted(module.glob("*.safetensors"))
        pickles = sorted(file.name for pattern in PICKLES for file in module.glob(pattern))
        if pickles and not files:
            raise ModelUnavailable(
                spec.id,
                f"{pickles[0]} is a pickle, which can run code when read, so it never is; "
                "save the model as safetensors.",
            )
        found += [file.relative_to(folder).as_posix() for file in files]
    if not found:
        raise ModelUnavailable(spec.id, f"there are no safetensors in {folder}; point its entry at a complete model.")
    return sorted(found)


def _module_folders(spec: ModelSpec, folder: Path) -> list[Path]:
    try:
        modules = json.loads((folder / "modules.json").read_text("utf-8"))
        paths = [folder / module["path"] for module in modules]
        types = [str(module["type"]) for module in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelUnavailable(
            spec.id,
            f"{folder} has no readable modules.json; save the model with sentence-transformers.",
        ) from error
    foreign = [name for name in types if not name.startswith("sentence_transformers.")]
    if foreign:
        raise ModelUnavailable(spec.id, f"it needs code of its own, {foreign[0]}, which is never run; use another.")
    if any(not path.resolve().is_relative_to(folder.resolve()) for path in paths):
        raise ModelUnavailable(spec.id, "its modules.json points outside its folder; use another copy.")
    return paths


def _local_folder(spec: ModelSpec) -> Path | None:
    if spec.folder is not None:
        folder = spec.folder.expanduser()
        return folder if folder.is_dir() else None
    return _package_folder(spec.package) if spec.package else None


def _package_folder(package: str) -> Path | None:
    """The `model` folder of an installed package; the package itself, which may be heavy, is not imported."""
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0]) / "model"
    return folder if folder.is_dir() else None


def _from_hub(model: str, repository: str, revision: str | None, download: bool) -> Path:
    try:
        with _no_bars():
            found = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=WANTED,
                ignore_patterns=UNWANTED,
                local_files_only=not download,
            )
    except Exception as error:  # the HTTP library below raises its own, and has changed between versions
        template = next(text for kind, text in DOWNLOAD_FAILURES if isinstance(error, kind))
        reason = template.format(repository=repository, revision=revision, error=type(error).__name__)
        raise ModelUnavailable(model, reason) from error
    return Path(found)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep download bars off stderr, which is the log of a service."""
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()
