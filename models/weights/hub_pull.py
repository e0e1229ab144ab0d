"""Downloads of a model's files into the Hugging Face Hub's cache, verified against the Hub's checksums.

HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are honoured by huggingface_hub.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from threading import Lock
from typing import Any

from huggingface_hub import HfApi, ModelInfo, constants, snapshot_download
from huggingface_hub.file_download import REGEX_COMMIT_HASH, _cache_commit_hash_for_specific_revision
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import tqdm

from ..catalogue import GraphDtype, ModelSpec
from ..errors import ModelError, ModelUnavailable
from .hub_cache import NEVER_DATA, delete_cached, patterns, storage
from .hub_errors import free_bytes, hub_errors, no_space
from .model_files import named_files, weight_files

MARGIN = 1.05
"""Free space asked for, as a multiple of the download."""

OnStep = Callable[[str], None]
"""Called with each step, as a clause in the present tense."""
OnBytes = Callable[[int, int], None]
"""Called with the bytes that have been downloaded, and their total."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """Result of a pull. fetched_bytes: downloaded just now; licence: as the Hub states it."""

    folder: Path
    fetched_bytes: int
    licence: str | None


def pull(
    spec: ModelSpec,
    dtype: GraphDtype | None = None,
    on_step: OnStep = lambda step: None,
    on_bytes: OnBytes = lambda done, total: None,
) -> Pulled:
    """Download the files of a model's revision that the cache lacks, and verify all of them.

    If it fails, what the cache had before stays usable. dtype: which ONNX graph, see ModelSpec.graph.
    Raises ModelUnavailable; ModelError where the disk is too small, before the download, or a file came damaged.
    """
    on_step(f"asking {constants.ENDPOINT} for {spec.repository}")
    info = _model_info(spec)
    names = _matching(info, *patterns(spec, dtype))
    _require_weights(spec, dtype, names)
    download = _Download(spec, str(info.sha), on_step, on_bytes)
    folder, fetched_bytes = download.fetch(names)
    others = [escape(name) for name in _found(named_files, spec, folder, dtype) if name not in names]
    if more := _matching(info, others, NEVER_DATA):
        fetched_bytes += download.fetch(more)[1]
    _found(weight_files, spec, folder, dtype)
    with hub_errors(spec):  # not before all files are there: until then the branch stands for the commit before
        revision = spec.revision or constants.DEFAULT_REVISION
        _cache_commit_hash_for_specific_revision(str(storage(str(spec.repository))), revision, str(info.sha))
    return Pulled(folder, fetched_bytes, info.card_data.get("license") if info.card_data else None)


def file_names(spec: ModelSpec) -> list[str]:
    """Paths of all files of the entry's revision. Raises ModelUnavailable."""
    return [file.rfilename for file in _model_info(spec).siblings or ()]


def fetch_texts(spec: ModelSpec, names: Sequence[str], folder: Path) -> None:
    """Download small files of a revision, those of the names that it has, to a folder outside the cache.

    Raises ModelUnavailable.
    """
    info = _model_info(spec)
    if found := _matching(info, names, ()):
        with hub_errors(spec):
            snapshot_download(
                str(spec.repository),
                revision=info.sha,
                allow_patterns=found,
                local_dir=folder,
                tqdm_class=_progress(),
            )


def _model_info(spec: ModelSpec) -> ModelInfo:
    with hub_errors(spec):
        info = HfApi().model_info(str(spec.repository), revision=spec.revision)
    if not REGEX_COMMIT_HASH.fullmatch(info.sha or ""):
        reason = f"the Hub lists the commit {info.sha!r} in {spec.repository}, which cannot be"
        raise ModelUnavailable(spec.id, f"{reason}; choose another repository, or correct HF_ENDPOINT")
    return info


def _matching(info: ModelInfo, allow: Collection[str], ignore: Collection[str]) -> list[str]:
    names = [file.rfilename for file in info.siblings or ()]
    return list(filter_repo_objects(names, allow_patterns=list(allow), ignore_patterns=list(ignore)))


def _require_weights(spec: ModelSpec, dtype: GraphDtype | None, names: Sequence[str]) -> None:
    """Raises ModelUnavailable where there are no weights among the files of a repository that would be fetched."""
    if spec.served_by == "onnx":
        if (graph := spec.onnx_files[spec.graph(dtype)]) not in names:
            reason = f"{spec.repository} has no {graph} that its entry allows; correct `onnx_files` in its entry"
            raise ModelUnavailable(spec.id, reason)
    elif not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        reason = f"{spec.repository} has no safetensors that its entry allows; correct the entry, or save the model as"
        raise ModelUnavailable(spec.id, f"{reason} safetensors")


def _found(
    search: Callable[[ModelSpec, Path, GraphDtype | None], list[str]],
    spec: ModelSpec,
    folder: Path,
    dtype: GraphDtype | None,
) -> list[str]:
    """Names of weight files in a folder that has all that may be fetched, so that to fetch it again is no help."""
    try:
        return search(spec.model_copy(update={"folder": folder}), folder, dtype)
    except ModelUnavailable as error:
        reason = f"{spec.repository} has no more that may be fetched, and that does not suffice: {error.reason}"
        raise ModelUnavailable(spec.id, reason) from error


@dataclass(frozen=True, slots=True)
class _Download:
    """A download of one commit: huggingface_hub lets a branch stand for the new commit before its files are there."""

    spec: ModelSpec
    commit: str
    on_step: OnStep
    on_bytes: OnBytes

    def fetch(self, names: Sequence[str]) -> tuple[Path, int]:
        """Download the files that are missing and verify all -> their folder, and the bytes downloaded.

        Damaged files are deleted; one that was in the cache before is downloaded again. Raises ModelError.
        """
        spec, repository = self.spec, str(self.spec.repository)
        patterns = [escape(name) for name in names]
        with hub_errors(spec):
            planned = snapshot_download(
                repository,
                revision=self.commit,
                allow_patterns=patterns,
                tqdm_class=_progress(),
                dry_run=True,
            )
        missing = {file.filename: file.file_size or 0 for file in planned if file.will_download}
        size = sum(missing.values())
        if (needed := int(MARGIN * size)) > (free := free_bytes()):
            raise no_space(spec, needed, free)
        if missing:
            self.on_step(f"fetching {len(missing)} files")
        with hub_errors(spec, size):
            bars = _progress(self.on_bytes, size)
            folder = snapshot_download(repository, revision=self.commit, allow_patterns=patterns, tqdm_class=bars)
            self.on_step("verifying the files")
            verified = HfApi().verify_repo_checksums(repository, revision=self.commit)
            damaged = [file for file in verified.mismatches if file["path"] in names]  # others may be other programs'
            for file in damaged:
                delete_cached(Path(folder, file["path"]))
        for file in damaged:
            if file["path"] in missing:
                raise ModelError(
                    f"{file['path']} of model {spec.id!r} came with the checksum {file['actual']}, the Hub lists "
                    f"{file['expected']}; it has been deleted, and the rest is kept. Fetch it again: mlbus models pull "
                    f"{spec.id}"
                )
        return (Path(folder), size + self.fetch(names)[1]) if damaged else (Path(folder), size)


def _progress(on_bytes: OnBytes = lambda done, total: None, total: int = 0) -> type[tqdm]:
    """A class for `tqdm_class` that reports the bytes to a function instead of drawing a bar.

    huggingface_hub counts the bytes of one download on several bars, on some of them later; the first count is used.
    """
    most, lock = 0, Lock()

    class Progress(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            nonlocal most
            with lock:
                self.n += n or 0
                if self._counts_bytes and self.n > most:
                    most = min(int(self.n), total)
                    on_bytes(most, total)

    return Progress
