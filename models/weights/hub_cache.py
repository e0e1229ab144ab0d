"""The Hugging Face Hub's cache: which files of a repository are needed, which are there, and which can be deleted."""

from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import (
    CachedRepoInfo,
    CachedRevisionInfo,
    DeleteCacheStrategy,
    HFCacheInfo,
    constants,
    scan_cache_dir,
    snapshot_download,
)
from huggingface_hub.errors import CacheNotFound, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # the one that its downloads take

from ..catalogue import GraphDtype, ModelSpec
from .onnx_data import usual_files

TEXTS = ["*.json", "*.txt", "*.model", "*.jinja"]
NEVER_DATA = ["*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py", "*pytorch_model*.bin"]
"""Pickles and code, by names that no data file of an ONNX graph has."""
NEVER = ["*.bin", *NEVER_DATA]
"""Pickles and code, which are never read or run, and so are never downloaded, whatever an entry allows."""
OTHER_COPIES = ["openvino/*", "checkpoint-*/*"]
LOCK_TIMEOUT_S = 0.1


@dataclass(frozen=True, slots=True)
class Superfluous:
    """What can be deleted of one repository; size_bytes: disk space that this frees."""

    repository: str
    revisions: tuple[str, ...]
    unfinished: tuple[Path, ...]
    size_bytes: int
    deletion: DeleteCacheStrategy = field(repr=False)

    def remove(self) -> None:
        for path in self.unfinished:
            path.unlink(missing_ok=True)
        self.deletion.execute()


@dataclass(frozen=True, slots=True)
class Survey:
    """What can be deleted from the cache, and why some repositories could not be read."""

    superfluous: tuple[Superfluous, ...]
    unreadable: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Disk space that deleting all of it frees."""
        return sum(one.size_bytes for one in self.superfluous)


def patterns(spec: ModelSpec, dtype: GraphDtype | None) -> tuple[list[str], list[str]]:
    """Patterns of a repository's files to download, and of exceptions from these."""
    if spec.allow_patterns:
        return list(spec.allow_patterns), NEVER
    if spec.kind == "generation":  # other files and folders hold the same weights again, for other programs
        return ["model.safetensors", "model-*-of-*.safetensors", *TEXTS], [*NEVER, "*/*"]
    if spec.served_by != "onnx":
        return ["*.safetensors", *TEXTS], [*NEVER, *OTHER_COPIES, "onnx/*"]
    return [*TEXTS, *usual_files(spec.onnx_files[spec.graph(dtype)])], [*NEVER, *OTHER_COPIES]


def storage(repository: str) -> Path:
    """The repository's folder in the cache, which need not be there."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def cached_snapshot(spec: ModelSpec, dtype: GraphDtype | None = None) -> Path | None:
    """The folder of the entry's revision; None if it is not there, or lacks a file that it is known to have."""
    assert spec.repository is not None
    allow, ignore = patterns(spec, dtype)
    with suppress(LocalEntryNotFoundError):
        return Path(
            snapshot_download(
                spec.repository,
                revision=spec.revision,
                allow_patterns=allow,
                ignore_patterns=ignore,
                local_files_only=True,
            )
        )
    return None


def delete_cached(path: Path) -> None:
    """Delete a file of the cache and the blob that it links to, without which the link would only be made again."""
    target = path.parent / path.readlink() if path.is_symlink() else None
    path.unlink()
    if target is not None:
        target.unlink(missing_ok=True)


def survey(repositories: Collection[str], keepers: Collection[ModelSpec]) -> Survey:
    """What these repositories have in the cache that no keeper uses: revisions, and abandoned downloads."""
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return Survey((), ())
    ours = (repo for repo in cache.repos if repo.repo_type == "model" and repo.repo_id in repositories)
    found = [_superfluous(cache, repo, keepers) for repo in sorted(ours, key=lambda repo: repo.repo_id)]
    folders = [str(storage(repository)) for repository in repositories]
    unreadable = [str(warning) for warning in cache.warnings if any(folder in str(warning) for folder in folders)]
    return Survey(tuple(one for one in found if one.revisions or one.unfinished), tuple(unreadable))


def _superfluous(cache: HFCacheInfo, repo: CachedRepoInfo, keepers: Collection[ModelSpec]) -> Superfluous:
    unused = [
        revision.commit_hash
        for revision in repo.revisions
        if not any(spec.repository == repo.repo_id and _names(spec, revision) for spec in keepers)
    ]
    unfinished = tuple(_unfinished(repo))
    deletion = cache.delete_revisions(*unused)
    size = deletion.expected_freed_size + sum(path.stat().st_size for path in unfinished)
    return Superfluous(repo.repo_id, tuple(sorted(unused)), unfinished, size, deletion)


def _names(spec: ModelSpec, revision: CachedRevisionInfo) -> bool:
    return (spec.revision or constants.DEFAULT_REVISION) in {revision.commit_hash, *revision.refs}


def _unfinished(repo: CachedRepoInfo) -> Iterator[Path]:
    """Partial files of downloads that do not run any more: a running one holds their lock."""
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / repo.repo_path.name
    for path in sorted(repo.repo_path.glob("blobs/*.incomplete")):
        lock = locks / f"{path.name.partition('.')[0]}.lock"
        with suppress(TimeoutError):
            if lock.exists():
                with WeakFileLock(lock, timeout=LOCK_TIMEOUT_S):
                    yield path
            else:
                yield path
