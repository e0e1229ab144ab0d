"""Writes files and folders so that they are complete or not there at all, whenever the process or the machine stops.

The order is: write under a temporary name, fsync, rename, fsync the folder around it.
"""

import errno
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path

_HOST = sha256(platform.node().encode()).hexdigest()[:8]
_PROCESS = secrets.token_hex(4)
"""Tells this process from an earlier one with the same number, as processes in a container have it."""
_TEMPORARY = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-([0-9a-f]{8})-\d+")
_numbers = count()


def temporary_name(path: Path) -> Path:
    """A free name beside `path`, with a dot in front, under which its content is written first."""
    return path.with_name(f".{path.name[:128]}.{_HOST}-{os.getpid()}-{_PROCESS}-{next(_numbers)}")


def write_durably(path: Path, data: bytes) -> None:
    """Write a file, replacing an old one. Readers see the old content or the new, never a part.

    Raises OSError; then the old file is still there.
    """
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(data)
        publish_file(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def publish_file(temporary: Path, final: Path) -> None:
    """Rename a finished file within its file system, replacing an old one. Raises OSError."""
    _sync(temporary)
    temporary.replace(final)
    _sync(final.parent)


def publish_folder(temporary: Path, final: Path) -> None:
    """Rename a finished folder within its file system. Raises FileExistsError where the name is taken, OSError."""
    if os.path.lexists(final):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final))
    for folder, _, files in os.walk(temporary, topdown=False):
        for name in files:
            _sync(Path(folder, name))
        _sync(Path(folder))
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(final)) from error
    _sync(final.parent)


@contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A temporary folder that is filled in this context, and then gets its final name; if that fails, it is removed.

    Raises FileExistsError where the name is taken, OSError.
    """
    temporary = temporary_name(final)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        publish_folder(temporary, final)
    except BaseException:
        _remove(temporary)
        raise


def point(link: Path, target: str) -> None:
    """Make or move a symbolic link, which points to the old or the new target at every moment.

    target: relative to the link's folder. Raises OSError, also where `link` is a folder.
    """
    temporary = temporary_name(link)
    try:
        temporary.symlink_to(target)
        temporary.replace(link)
    except BaseException:
        _remove(temporary)
        raise
    _sync(link.parent)


def discard(path: Path) -> None:
    """Remove a file, a link or a folder if it is there; a part is never left under its name. Raises OSError."""
    temporary = temporary_name(path)
    try:
        path.rename(temporary)
    except FileNotFoundError:
        return
    _sync(path.parent)
    _remove(temporary)


def clear_leftovers(folder: Path, age_s: float = 86_400) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Those of processes that are alive, or on another host, are removed once they are older than `age_s` seconds.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _TEMPORARY.fullmatch(path.name)
        with suppress(FileNotFoundError):  # another process clears the same folder
            if match and (_is_over(*match.groups()) or time.time() - path.lstat().st_mtime > age_s):
                _remove(path)


def _is_over(host: str, number: str, process: str) -> bool:
    """Whether the process that made a temporary name is known to have ended."""
    if host != _HOST:
        return False
    if int(number) == os.getpid():
        return process != _PROCESS
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
