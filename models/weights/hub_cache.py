"""The Hugging Face Hub's cache: which files of a repository belong there, which are there, and which are superfluous.

Asks no network. Touches only repositories that the catalogue names. What the files hold is for model_files.py.
"""

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
from .model_files import default_graph
from .onnx_data import usual_files

TEXTS = ["*.json", "*.txt", "*.model", "*.jinja"]
NEVER_DATA = ["*.pt", "*.pth", "*.ckpt", "*.pkl", "*.py", "*pytorch_model*.bin"]
"""Pickles and code, which no data of an ONNX graph is called."""
NEVER = ["*.bin", *NEVER_DATA]
"""Pickles and code: nothing here reads or runs them, so nothing fetches them, whatever an entry allows."""
ELSEWHERE = ["openvino/*", "checkpoint-*/*"]
LOCK_PATIENCE_S = 0.1


@dataclass(frozen=True, slots=True)
class Superfluous:
    """What may go from one repository's part of the cache; `size_bytes`: what that gives back."""

    repository: str
    revisions: tuple[str, ...]
    unfinished: tuple[Path, ...]
    size_bytes: int
    deletion: DeleteCacheStrategy = field(repr=False)

    def remove(self) -> None:
        """Delete it."""
        for path in self.unfinished:
            path.unlink(missing_ok=True)
        self.deletion.execute()


@dataclass(frozen=True, slots=True)
class Survey:
    """What may go from the cache, and which of the repositories could not be read, each with the reason."""

    superfluous: tuple[Superfluous, ...]
    unreadable: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """What removing all of it gives back."""
        return sum(one.size_bytes for one in self.superfluous)


def patterns(spec: ModelSpec, dtype: GraphDtype | None) -> tuple[list[str], list[str]]:
    """Patterns of the files of a repository that are fetched, and of those that are not for all that."""
    if spec.allow_patterns:
        return list(spec.allow_patterns), NEVER
    if spec.kind == "generation":  # other files and folders hold the same weights again, for other programs
        return ["model.safetensors", "model-*-of-*.safetensors", *TEXTS], [*NEVER, "*/*"]
    if spec.served_by != "onnx":
        return ["*.safetensors", *TEXTS], [*NEVER, *ELSEWHERE, "onnx/*"]
    return [*TEXTS, *usual_files(spec.onnx_files[dtype or default_graph(spec)])], [*NEVER, *ELSEWHERE]


def storage(repository: str) -> Path:
    """The repository's folder in the cache, which need not be there."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def cached_snapshot(spec: ModelSpec, dtype: GraphDtype | None = None) -> Path | None:
    """The folder of the entry's revision, if all its files that are known of are there; None otherwise."""
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


def discard(path: Path) -> None:
    """Delete a file of the cache, and what it points to: a pointer alone would bring the same bytes back."""
    target = path.parent / path.readlink() if path.is_symlink() else None
    path.unlink()
    if target is not None:
        target.unlink(missing_ok=True)


def survey(repositories: Collection[str], keepers: Collection[ModelSpec]) -> Survey:
    """What these repositories have in the cache and no keeper uses: revisions, and downloads that nobody finishes."""
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
    """Partial files whose lock is free: a running download holds it."""
    locks = Path(constants.HF_HUB_CACHE) / ".locks" / repo.repo_path.name
    for path in sorted(repo.repo_path.glob("blobs/*.incomplete")):
        lock = locks / f"{path.name.partition('.')[0]}.lock"
        with suppress(TimeoutError):
            if lock.exists():
                with WeakFileLock(lock, timeout=LOCK_PATIENCE_S):
                    yield path
            else:
                yield path
