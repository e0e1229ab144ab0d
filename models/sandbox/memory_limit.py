"""A limit on the memory that this process may allocate. On systems without such limits it does nothing."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STATUS = Path("/proc/self/status")
_STATM = Path("/proc/self/statm")


@contextmanager
def limited_memory(allowed: int | None) -> Iterator[None]:
    """Let this process allocate `allowed` bytes more than it has now; beyond that allocations fail. None: no limit.

    Raises MemoryError where oneDNN fails: it does not report that an allocation was the cause.
    """
    if allowed is None or not _STATUS.is_file():
        yield
        return
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [limit for limit in (before, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min([_status_bytes("VmData") + allowed, *bounds]), hard))
    try:
        yield
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        raise MemoryError from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def resident_bytes() -> int:
    """This process's resident memory; 0 if the system does not tell. Fast: one short file is read."""
    return int(_STATM.read_bytes().split()[1]) * resource.getpagesize() if _STATM.is_file() else 0


def peak_resident_bytes() -> int:
    """The maximum of this process's resident memory so far; 0 if the system does not tell."""
    return _status_bytes("VmHWM") if _STATUS.is_file() else 0


def _status_bytes(name: str) -> int:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(dict(lines)[name].split()[0]) * 1024
