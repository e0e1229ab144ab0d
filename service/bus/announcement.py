"""Where the embedded server of a data directory listens, for other commands on this machine, while it runs.

Owns the file `nats-server.url`, which is locked for as long as it is true: one that a killed process has left behind
leads nobody, and no password, to whoever listens there now. It is the owner's alone: who may read a file may lock it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BadBusSettings
from .private_file import MODE, write_private

FILE_NAME = "nats-server.url"


@contextmanager
def announced(data_dir: Path, url: str) -> Iterator[None]:
    """Inside, `announced_url` tells it. One process at a time: the caller holds the data directory.

    A new file each time, which has its lock before its name: what others still hold of an older one is nothing to it.
    Raises BadBusSettings where it cannot be written or locked.
    """
    path, draft = data_dir / FILE_NAME, data_dir / f".{FILE_NAME}.new"
    try:
        write_private(draft, url)
        descriptor = os.open(draft, os.O_RDONLY)
    except OSError as e:
        raise BadBusSettings(str(path), f"cannot be written: {e.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.replace(path)
        except OSError as e:
            raise BadBusSettings(str(path), f"cannot be locked and put in place: {e.strerror}") from None
        yield
    finally:
        os.close(descriptor)


def announced_url(data_dir: Path) -> str | None:
    """The url of the server that runs out of this data directory now; None where none does."""
    try:
        with (data_dir / FILE_NAME).open() as file:
            if os.fstat(file.fileno()).st_mode & 0o777 & ~MODE:
                return None  # an older mlbus left it, and others may hold its lock
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except OSError:
        pass
    return None
