"""What a revision on the Hugging Face Hub has: its files with sizes and digests, as far as they can be believed.

A listing comes from outside, and its names become paths in the cache: what would lead out of it is refused before
anything is touched. Asks the Hub one question; knows no cache.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from huggingface_hub import HfApi

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable

_COMMIT = re.compile("[0-9a-f]{40}")
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class File:
    """One file as the Hub lists it; `digest` is the SHA-256 of a large file, else git's SHA-1; None: not told."""

    name: str
    size: int | None
    digest: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A revision, resolved to its commit, with all of its files."""

    spec: ModelSpec
    commit: str
    files: Sequence[File]
    licence: str | None

    def matching(self, allow: Collection[str], ignore: Collection[str]) -> list[File]:
        """The files that match a pattern of the first, and none of the second. Raises ModelUnavailable."""
        found = [file for file in self.files if _matches(file.name, allow) and not _matches(file.name, ignore)]
        for file in found:
            _require_safe(self.spec, file)
        return found


def ask(spec: ModelSpec) -> Listing:
    """Ask the Hub for the entry's revision. Raises ModelUnavailable, and whatever huggingface_hub does."""
    assert spec.repository is not None
    info = HfApi().model_info(spec.repository, revision=spec.revision, files_metadata=True)
    if not _COMMIT.fullmatch(info.sha or ""):
        raise _unbelievable(spec, f"the commit {info.sha!r}")
    files = [
        File(one.rfilename, one.lfs.size, one.lfs.sha256) if one.lfs else File(one.rfilename, one.size, one.blob_id)
        for one in info.siblings or ()
    ]
    return Listing(spec, str(info.sha), files, info.card_data.get("license") if info.card_data else None)


def _matches(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _require_safe(spec: ModelSpec, file: File) -> None:
    path = PurePosixPath(file.name)
    if path.is_absolute() or ".." in path.parts or not path.name or "\\" in file.name:
        raise _unbelievable(spec, f"a file {file.name!r}")
    if file.digest is not None and not _DIGEST.fullmatch(file.digest):
        raise _unbelievable(spec, f"the digest {file.digest!r} of {file.name}")


def _unbelievable(spec: ModelSpec, listed: str) -> ModelUnavailable:
    reason = f"the Hub lists {listed} in {spec.repository}, which cannot be"
    return ModelUnavailable(spec.id, f"{reason}; choose another repository, or correct HF_ENDPOINT")
