"""Where the embedded server of a data directory listens, for other commands on this machine, while it runs.

Owns the file `nats-server.url`, which is locked for as long as it is true: one that a killed process has left behind
leads nobody, and no password, to whoever listens there now.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_NAME = "nats-server.url"


@contextmanager
def announced(data_dir: Path, url: str) -> Iterator[None]:
    """Inside, `announced_url` tells it. One process at a time: the caller holds the data directory. Raises OSError."""
    path = data_dir / FILE_NAME
    path.write_text(url)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # waits for a reader at most
        yield


def announced_url(data_dir: Path) -> str | None:
    """The url of the server that runs out of this data directory now; None where none does."""
    try:
        with (data_dir / FILE_NAME).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read()
    except OSError:
        pass
    return None
