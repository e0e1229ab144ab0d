"""The download of a model's files into the Hugging Face Hub's cache, and their verification against what the Hub lists.

Owns what is asked of the Hub, and that a failure leaves the cache as usable as it was. HF_HOME, HF_TOKEN, HF_ENDPOINT
and HF_HUB_OFFLINE are honoured by huggingface_hub. Knows no folders of the user's own.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.utils.tqdm import tqdm

from .catalogue import GraphDtype, ModelSpec
from .errors import ModelError, ModelUnavailable, NoSpace, WrongDownload
from .hub_cache import discard, patterns, storage
from .hub_errors import next_step
from .hub_progress import OnBytes, telling
from .weights import file_sha256, weight_files

MARGIN = 1.05
"""Of what is to be fetched, so that a download does not take a disk's last byte."""

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull left: the folder, what was fetched just now, and the licence that the Hub states."""

    folder: Path
    fetched_bytes: int
    licence: str | None


@dataclass(frozen=True, slots=True)
class _File:
    """One file as the Hub lists it; `digest` is the SHA-256 of a large file, else git's SHA-1; None: not told."""

    name: str
    size: int | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class _Listing:
    """A revision, resolved to its commit, with those of its files that are wanted."""

    commit: str
    files: Sequence[_File]
    licence: str | None


def pull(
    spec: ModelSpec,
    dtype: GraphDtype | None = None,
    on_step: OnStep = lambda step: None,
    on_bytes: OnBytes = lambda done, total: None,
) -> Pulled:
    """Fetch what the cache lacks of a model's revision and verify all of it; what is already here stays usable.

    dtype: which ONNX graph; None: default_graph. on_step hears of each step, on_bytes of the bytes of the download.
    Raises ModelUnavailable, NoSpace before a byte is fetched, WrongDownload.
    """
    assert spec.repository is not None
    on_step(f"asking {constants.ENDPOINT} for {spec.repository}")
    with _explained(spec):
        listing = _ask(spec, spec.repository, dtype)
        missing = _missing(spec.repository, listing)
    _require_space(spec, _total(missing))
    if missing:
        on_step(f"fetching {len(missing)} files")
    with _explained(spec, _total(missing)):
        folder = _fetch(spec.repository, listing, telling(on_bytes, _total(missing)))
        on_step("verifying the files")
        for file in listing.files:
            _verify(spec, folder, file)
        weight_files(spec, folder, dtype)
        _point(spec.revision or constants.DEFAULT_REVISION, folder)
    return Pulled(folder, _total(missing), listing.licence)


@contextmanager
def _explained(spec: ModelSpec, needed_bytes: int = 0) -> Iterator[None]:
    """Anything that goes wrong inside comes out as one of our errors."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the HTTP library below raises its own, and has changed between versions
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise NoSpace(spec.id, needed_bytes, _free(), str(constants.HF_HUB_CACHE)) from error
        raise ModelUnavailable(spec.id, next_step(error, spec)) from error


def _ask(spec: ModelSpec, repository: str, dtype: GraphDtype | None) -> _Listing:
    info = HfApi().model_info(repository, revision=spec.revision, files_metadata=True)
    allow, ignore = patterns(spec, dtype)
    files = [
        _File(one.rfilename, one.lfs.size, one.lfs.sha256) if one.lfs else _File(one.rfilename, one.size, one.blob_id)
        for one in info.siblings or ()
    ]
    kept = [file for file in files if _matches(file.name, allow) and not _matches(file.name, ignore)]
    if info.sha is None or not any(file.name.endswith((".safetensors", ".onnx")) for file in kept):
        raise ModelUnavailable(
            spec.id,
            f"{repository} has no safetensors and no ONNX graph that its entry allows; correct the entry, or save the "
            "model as safetensors",
        )
    return _Listing(info.sha, kept, info.card_data.get("license") if info.card_data else None)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _missing(repository: str, listing: _Listing) -> list[_File]:
    """The files that are not in the cache; one of a wrong size is deleted, and counts as missing."""
    home = storage(repository)
    missing = []
    for file in listing.files:
        path = home / "snapshots" / listing.commit / file.name
        blob = home / "blobs" / (file.digest or "unknown")
        for place in (path, blob):
            if place.is_file() and file.size not in (None, place.stat().st_size):
                discard(place)
        if not path.is_file() and not blob.is_file():
            missing.append(file)
    return missing


def _total(files: Sequence[_File]) -> int:
    return sum(file.size or 0 for file in files)


def _require_space(spec: ModelSpec, size_bytes: int) -> None:
    needed, free = int(MARGIN * size_bytes), _free()
    if needed > free:
        raise NoSpace(spec.id, needed, free, str(constants.HF_HUB_CACHE))


def _free() -> int:
    cache = Path(constants.HF_HUB_CACHE).absolute()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return shutil.disk_usage(there).free


def _fetch(repository: str, listing: _Listing, bars: type[tqdm]) -> Path:
    """By commit and not by branch: huggingface_hub moves a branch's pointer before the files are there."""
    names = [file.name for file in listing.files]
    return Path(snapshot_download(repository, revision=listing.commit, allow_patterns=names, tqdm_class=bars))


def _verify(spec: ModelSpec, folder: Path, file: _File) -> None:
    path = folder / file.name
    size = path.stat().st_size
    if file.size not in (None, size):
        expected, found = f"{file.size} bytes", f"{size} bytes"
    else:
        found = _digest(path, file.digest or "")
        expected = file.digest or found
    if found != expected:
        discard(path)
        raise WrongDownload(spec.id, file.name, expected, found)


def _digest(path: Path, like: str) -> str:
    """The digest of a file in the manner of another one: SHA-256, or git's SHA-1 of a blob."""
    if len(like) == 64:
        return file_sha256(path)
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() if like else ""


def _point(revision: str, folder: Path) -> None:
    """Let the branch or tag stand for this snapshot from now on; a commit needs no pointer."""
    if revision == folder.name:
        return
    ref = folder.parent.parent / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f"{ref.name}.{folder.name}")
    temporary.write_text(folder.name)
    temporary.replace(ref)
