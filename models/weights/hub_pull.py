"""The download of a model's files into the Hugging Face Hub's cache, and their verification against what the Hub lists.

Owns the order of steps, and that a failure leaves the cache as usable as it was. HF_HOME, HF_TOKEN, HF_ENDPOINT
and HF_HUB_OFFLINE are honoured by huggingface_hub. Knows no folders of the user's own.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.utils.tqdm import tqdm

from ..catalogue import GraphDtype, ModelSpec
from ..errors import ModelError, ModelUnavailable, NoSpace, WrongDownload
from .hub_cache import NEVER, NEVER_DATA, discard, patterns, storage
from .hub_errors import next_step
from .hub_listing import File, Listing, ask
from .hub_progress import OnBytes, telling
from .model_files import default_graph, file_sha256, named_files, weight_files

MARGIN = 1.05
"""Of what is to be fetched, so that a download does not take a disk's last byte."""

OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull left: the folder, what was fetched just now, and the licence that the Hub states."""

    folder: Path
    fetched_bytes: int
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
    on_step(f"asking {constants.ENDPOINT} for {spec.repository}")
    with _explained(spec):
        listing = ask(spec)
        files = _wanted(listing, dtype)
    folder, fetched = _bring(listing, files, on_step, on_bytes)
    foreseen = {file.name for file in files}
    named = [escape(name) for name in _found(named_files, spec, folder, dtype) if name not in foreseen]
    more = listing.matching(named, NEVER_DATA)
    if more:
        fetched += _bring(listing, more, on_step, on_bytes)[1]
    _found(weight_files, spec, folder, dtype)
    with _explained(spec):
        _point(spec.revision or constants.DEFAULT_REVISION, folder)
    return Pulled(folder, fetched, listing.licence)


def file_names(spec: ModelSpec) -> list[str]:
    """What a revision has, by its paths. Raises ModelUnavailable."""
    with _explained(spec):
        return [file.name for file in ask(spec).files]


def fetch_texts(spec: ModelSpec, names: Sequence[str], folder: Path) -> None:
    """Fetch such of a revision's small files as there are to a folder of the caller's; the cache stays as it is.

    Raises ModelUnavailable.
    """
    with _explained(spec):
        listing = ask(spec)
        for file in listing.matching([escape(name) for name in names], NEVER):
            hf_hub_download(
                str(spec.repository),
                file.name,
                revision=listing.commit,
                local_dir=folder,
                tqdm_class=telling(lambda done, total: None, 0),
            )


@contextmanager
def _explained(spec: ModelSpec, needed_bytes: int = 0) -> Iterator[None]:
    """Anything that goes wrong inside comes out as one of our errors."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # the HTTP library below raises its own, and has changed between versions
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT):
            free = _free() if number == errno.ENOSPC else 0  # of a quota, whatever the disk has
            raise NoSpace(spec.id, needed_bytes, free, str(constants.HF_HUB_CACHE)) from error
        raise ModelUnavailable(spec.id, next_step(error, spec)) from error


def _wanted(listing: Listing, dtype: GraphDtype | None) -> list[File]:
    """What the entry asks for. Raises ModelUnavailable where no weights are among it."""
    spec = listing.spec
    files = listing.matching(*patterns(spec, dtype))
    graph = spec.onnx_files[dtype or default_graph(spec)] if spec.served_by == "onnx" else None
    if graph is not None and all(file.name != graph for file in files):
        reason = f"{spec.repository} has no {graph} that its entry allows; correct `onnx_files` in its entry"
        raise ModelUnavailable(spec.id, reason)
    if graph is None and not any(file.name.endswith((".safetensors", ".safetensors.index.json")) for file in files):
        reason = f"{spec.repository} has no safetensors that its entry allows; correct the entry, or save the model as"
        raise ModelUnavailable(spec.id, f"{reason} safetensors")
    return files


def _found(
    ask_for: Callable[[ModelSpec, Path, GraphDtype | None], list[str]],
    spec: ModelSpec,
    folder: Path,
    dtype: GraphDtype | None,
) -> list[str]:
    """Names of weight files in a folder that has all that may be fetched, so that to fetch it again is no help."""
    try:
        return ask_for(spec.model_copy(update={"folder": folder}), folder, dtype)
    except ModelUnavailable as error:
        reason = f"{spec.repository} has no more that may be fetched, and that does not suffice: {error.reason}"
        raise ModelUnavailable(spec.id, reason) from error


def _bring(listing: Listing, files: Sequence[File], on_step: OnStep, on_bytes: OnBytes) -> tuple[Path, int]:
    """Fetch those of the files that are missing and verify all -> their snapshot, and the bytes that were missing."""
    spec = listing.spec
    with _explained(spec):
        missing = _missing(listing, files)
    size = _total(missing)
    _require_space(spec, size)
    if missing:
        on_step(f"fetching {len(missing)} files")
    with _explained(spec, size):
        folder = _fetch(listing, files, telling(on_bytes, size))
        on_step("verifying the files")
        for file in files:
            _verify(spec, folder, file)
    return folder, size


def _missing(listing: Listing, files: Sequence[File]) -> list[File]:
    """The files that are not in the cache; one of a wrong size is deleted, and counts as missing."""
    home = storage(str(listing.spec.repository))
    missing = []
    for file in files:
        path = home / "snapshots" / listing.commit / file.name
        blob = home / "blobs" / (file.digest or "unknown")
        for place in (path, blob):
            if place.is_file() and file.size not in (None, place.stat().st_size):
                discard(place)
        if not path.is_file() and not blob.is_file():
            missing.append(file)
    return missing


def _total(files: Sequence[File]) -> int:
    return sum(file.size or 0 for file in files)


def _require_space(spec: ModelSpec, size_bytes: int) -> None:
    needed, free = int(MARGIN * size_bytes), _free()
    if needed > free:
        raise NoSpace(spec.id, needed, free, str(constants.HF_HUB_CACHE))


def _free() -> int:
    cache = Path(constants.HF_HUB_CACHE).absolute()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    return shutil.disk_usage(there).free


def _fetch(listing: Listing, files: Sequence[File], bars: type[tqdm]) -> Path:
    """By commit and not by branch: huggingface_hub moves a branch's pointer before the files are there."""
    names = [escape(file.name) for file in files]
    repository = str(listing.spec.repository)
    return Path(snapshot_download(repository, revision=listing.commit, allow_patterns=names, tqdm_class=bars))


def _verify(spec: ModelSpec, folder: Path, file: File) -> None:
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
