"""The file `nats-server.url`: tells other commands on this machine where the data directory's embedded server listens.

The file is locked while the server runs. A file left by a killed process is not locked, so it leads no command, and no
password, to another program on that port. Only its owner can read it, because whoever can read a file can lock it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import refusing
from .private_file import MODE, write_private

FILE_NAME = "nats-server.url"


@contextmanager
def announced(data_dir: Path, url: str) -> Iterator[None]:
    """Inside, `announced_url` returns the url. The caller holds the data directory's lock.

    Each time a new file is locked before it gets its name, so locks on an older file do not matter. Raises
    BadBusSettings if it cannot be written or locked.
    """
    path, draft = data_dir / FILE_NAME, data_dir / f".{FILE_NAME}.new"
    with refusing(path, "cannot be written"):
        write_private(draft, url)
        descriptor = os.open(draft, os.O_RDONLY)
    try:
        with refusing(path, "cannot be locked and put in place"):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.replace(path)
        yield
    finally:
        os.close(descriptor)


def announced_url(data_dir: Path) -> str | None:
    """The url of this data directory's running server; None if none runs."""
    try:
        with (data_dir / FILE_NAME).open() as file:
            if os.fstat(file.fileno()).st_mode & 0o777 & ~MODE:
                return None  # left by an older mlbus; others may hold its lock
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except OSError:
        pass
    return None
