"""How much memory a training on the CPU may take beside the process as it began, and a fresh start where that is short.

Where the system keeps no such limit, there is none.
"""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_STATUS = Path("/proc/self/status")


@contextmanager
def memory_ceiling(allowed: int | None) -> Iterator[None]:
    """Let this process take so many bytes more than it has now; past that allocations fail. None: no limit.

    oneDNN does not say that it was memory that it did not get; below a limit that is taken for it. Raises MemoryError.
    """
    if allowed is None or not _STATUS.is_file():
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([_kept("VmData") + allowed, *bounds]), hard))
    try:
        yield
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        raise MemoryError from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def begin_again(folder: Path) -> NoReturn:
    """Do the step `train` of a run anew in this process's place: oneDNN computes nothing new once it lacked memory."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-P", "-m", "models.training", "train", str(folder)])


def resident_bytes(*, most: bool = False) -> int:
    """What this process has in memory, or had at most; 0 where the system does not say."""
    return _kept("VmHWM" if most else "VmRSS") if _STATUS.is_file() else 0


def _kept(name: str) -> int:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(dict(lines)[name].split()[0]) * 1024
