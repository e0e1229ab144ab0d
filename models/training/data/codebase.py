"""Read the source files of a codebase, within bounds, and count what is left out by reason.

No symbolic link is followed, and only regular files are opened.
"""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG

from ..errors import PathRefused
from .file_kinds import decode, is_generated_name, is_generated_text, is_vendored
from .languages import language_of, may_be_code
from .listing import Tracked, is_unchanged, tracked_files, walk_files
from .records import SourceFile

_MAX_FILES = 100_000
_MAX_BYTES = 256 << 20
_MAX_FILE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Codebase:
    """The source files of a folder, sorted by path. skipped: the number of files left out, by reason.

    commit: git's HEAD, with `+changes` if the files or the index differ from it; None without git.
    digest: SHA-256 over the paths and contents of the files.
    """

    files: list[SourceFile]
    skipped: dict[str, int]
    commit: str | None
    digest: str


def read_codebase(path: Path, roots: Sequence[Path] = ()) -> Codebase:
    """Read the source files below a folder: those that git tracks, or else all that no .gitignore excludes.

    roots: the folders below which it must be, links resolved; none: anywhere. Of a codebase beyond the bounds, a part
    is read, always the same. Raises PathRefused.
    """
    top = _resolve(path, roots)
    reader = _Reader(top)
    tracked = tracked_files(top)
    if tracked is None:
        paths = list(walk_files(top, reader.skipped))
    else:
        reader.skipped.update(tracked.left_out.values())
        paths = list(tracked.files)
    reader.read_all(paths, tracked.files if tracked else {})
    files = sorted(reader.files, key=lambda file: file.path)
    return Codebase(files, dict(sorted(reader.skipped.items())), _commit(tracked, reader.has_changes), _digest(files))


def _resolve(path: Path, roots: Sequence[Path]) -> Path:
    """The folder's real path. A folder outside the roots is not accessed."""
    try:
        real = Path(os.path.realpath(path))
        allowed = [Path(os.path.realpath(root)) for root in roots]
        if allowed and not any(real.is_relative_to(root) for root in allowed):
            raise PathRefused(str(path), f"it lies outside of {', '.join(map(str, roots))}")
        real = Path(os.path.realpath(path, strict=True))
        with os.scandir(real):
            return real
    except FileNotFoundError:
        reason = "there is nothing of that name"
    except NotADirectoryError:
        reason = "it is not a folder"
    except PermissionError:
        reason = "this process may not read it"
    except (OSError, ValueError) as error:
        reason = f"it cannot be opened ({error})"
    raise PathRefused(str(path), reason)


class _Reader:
    """Reads files below a folder within the bounds, and counts those left out."""

    def __init__(self, top: Path) -> None:
        self.files: list[SourceFile] = []
        self.skipped: Counter[str] = Counter()
        self.has_changes = False
        self._top = top
        self._bytes = 0
        self._is_inside = cache(self._lies_inside)

    def read_all(self, paths: Iterable[str], object_ids: Mapping[str, str]) -> None:
        """Read the files that are code, in a pseudo-random order, so that the bounds do not leave out whole folders.

        object_ids: of the files that git tracks.
        """
        for path in sorted(paths, key=lambda path: sha256(os.fsencode(path)).digest()):
            reason = _reason_by_name(path) or self._read(path, object_ids.get(path))
            if reason is not None:
                self.skipped[reason] += 1

    def _read(self, path: str, object_id: str | None) -> str | None:
        """Add a file -> the reason if it is left out."""
        if len(self.files) == _MAX_FILES:
            return "too many files"
        if not self._is_inside(path.rpartition("/")[0]):
            return "symlink"
        content = _content(self._top / path)
        if isinstance(content, str):
            self.has_changes |= content == "missing"
            return content
        self.has_changes |= object_id is not None and not is_unchanged(content, object_id)
        if self._bytes + len(content) > _MAX_BYTES:
            return "too many bytes"
        if (text := decode(content)) is None:
            return "binary"
        if not text.strip():
            return "empty"
        if not (language := language_of(path, text)):
            return "not code"
        if is_generated_text(text):
            return "generated"
        self._bytes += len(content)
        self.files.append(SourceFile(path, language, text))
        return None

    def _lies_inside(self, folder: str) -> bool:
        """Whether the path has no symbolic link: one may have replaced a folder that git tracks."""
        return os.path.realpath(self._top / folder) == str(self._top / folder)


def _reason_by_name(path: str) -> str | None:
    """The reason to leave a file out without opening it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return "name is not UTF-8"
    if is_vendored(path):
        return "vendored"
    if is_generated_name(path):
        return "generated"
    return None if may_be_code(path) else "not code"


def _content(path: Path) -> bytes | str:
    """A file's content, or the reason to leave it out. Does not block on a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return "symlink" if error.errno == errno.ELOOP else "unreadable"
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not S_ISREG(status.st_mode):
            return "not a file"
        try:
            content = file.read(_MAX_FILE_BYTES + 1) if status.st_size <= _MAX_FILE_BYTES else b""
        except OSError:
            return "unreadable"
    return "too large" if max(len(content), status.st_size) > _MAX_FILE_BYTES else content


def _commit(tracked: Tracked | None, has_changes: bool) -> str | None:
    if tracked is None or tracked.commit is None:
        return None
    return tracked.commit + "+changes" * (tracked.is_staged or has_changes)


def _digest(files: Iterable[SourceFile]) -> str:
    total = sha256()
    for file in files:
        total.update(file.path.encode() + b"\0" + sha256(file.text.encode()).digest())
    return total.hexdigest()
