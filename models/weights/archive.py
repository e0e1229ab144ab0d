"""Packs a folder of weights into a tar file, and unpacks it safely.

The same files give the same bytes. Files are copied in pieces, never read whole.
"""

import os
import shutil
import tarfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from ..errors import ModelError
from .durable import new_folder, publish_file, temporary_name
from .model_files import PICKLES, file_sha256

MAX_FILES = 1_000
MAX_BYTES = 2**36
_MAX_NAME, _MAX_PATH = 255, 1024
"""In bytes: the longest name that file systems take, and less than the longest path."""
_PIECE_BYTES = 2**20


class BadArchive(ModelError):
    """A folder cannot be packed, or an archive not be unpacked; `reason` is a clause."""

    archive: str
    reason: str
    message = "{archive} is no archive of weights: {reason}"


def pack(folder: Path, file: Path) -> str:
    """Write a folder's files into a tar file, replacing an old one -> its SHA-256 in hexadecimal.

    Raises BadArchive where the folder has a file that may not be sent, such as a pickle or a link; OSError.
    """
    temporary = temporary_name(file)
    try:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as archive:
            for path, name in _files(folder):
                with path.open("rb") as source:
                    member = tarfile.TarInfo(name)  # without time, owner and rights
                    member.size = path.stat().st_size
                    archive.addfile(member, source)
        publish_file(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return file_sha256(file)


def unpack(file: Path, folder: Path, sha256: str, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
    """Unpack an archive into a new folder, which appears when it is complete.

    The SHA-256 is checked before anything is parsed. Raises BadArchive, FileExistsError, OSError.
    """
    found = file_sha256(file)
    if found != sha256:
        raise BadArchive(file.name, f"its SHA-256 is {found}, not {sha256}")
    try:
        with new_folder(folder) as temporary, tarfile.open(file, "r:") as archive:
            for member in _checked(archive, file.name, max_files, max_bytes):
                _extract(archive, member, temporary)
    except (tarfile.TarError, ValueError, EOFError, OverflowError) as error:
        raise BadArchive(file.name, str(error)) from error


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    """All files below a folder with their names in it, sorted. Raises BadArchive."""
    found = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*"))
    for name, path in found:
        if path.is_dir() and not path.is_symlink():
            continue
        fault = _name_fault(name) or (f"{name} is no plain file" if path.is_symlink() or not path.is_file() else None)
        if fault:
            raise BadArchive(str(folder), fault)
        yield path, name


def _checked(archive: tarfile.TarFile, label: str, max_files: int, max_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The members, each after it has been checked. Raises BadArchive."""
    files = total = 0
    for member in archive:
        files, total = files + 1, total + member.size
        plain = member.isreg() and not member.issparse()
        fault = _name_fault(member.name) or (None if plain else f"{member.name!r} is no plain file")
        if files > max_files or total > max_bytes:
            fault = f"it has more than {max_files} files or {max_bytes} bytes"
        if fault:
            raise BadArchive(label, fault)
        yield member
    if not files:
        raise BadArchive(label, "it is empty")


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    target = folder / member.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sink = target.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise BadArchive(str(archive.name), f"{member.name!r} is there twice") from error
    with sink, archive.extractfile(member) as source:  # type: ignore[union-attr]
        shutil.copyfileobj(source, sink, _PIECE_BYTES)


def _name_fault(name: str) -> str | None:
    """Why a file of this name is neither packed nor unpacked, if so."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name:
        return f"{name!r} points out of its folder"
    if any(fnmatch(parts[-1].lower(), pattern) for pattern in PICKLES):
        return f"{name!r} is a pickle, which can run code when read"
    if len(os.fsencode(name)) > _MAX_PATH or any(len(os.fsencode(part)) > _MAX_NAME for part in parts):
        return f"{name[:64]!r}… is too long a name"
    return None
