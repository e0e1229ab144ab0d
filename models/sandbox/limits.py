"""Limits of memory and processor time: of this process, and of a command that is started with them.

    python limits.py MEMORY_BYTES CPU_S PROGRAM ARGUMENT...

A program and not a `preexec_fn`, because code between fork and exec can deadlock in a process with threads. Where the
system keeps no such limit, there is none.
"""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")
_GRACE_S = 5
"""Processor time between SIGXCPU and SIGKILL."""


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """memory_bytes: what a process may allocate; cpu_s, wall_s: how long it may compute, and take."""

    memory_bytes: int
    cpu_s: int
    wall_s: float

    @property
    def launcher(self) -> tuple[str, ...]:
        """Start of the command line, before the command. Past the memory allocations fail; past cpu_s comes SIGXCPU."""
        return (sys.executable, "-I", "-S", __file__, str(self.memory_bytes), str(self.cpu_s))


@contextmanager
def memory_limit(allowed_bytes: int | None) -> Iterator[None]:
    """Let this process allocate this many more bytes than it has now; past that allocations fail. None: no limit.

    oneDNN does not say that it lacked memory; its failures inside are taken for that. Raises MemoryError.
    """
    if allowed_bytes is None or not _STATUS.is_file():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    allowed = _status_bytes("VmData") + allowed_bytes
    _limit(resource.RLIMIT_DATA, allowed if before[0] == resource.RLIM_INFINITY else min(allowed, before[0]), before[1])
    try:
        yield
    except RuntimeError as error:
        if "could not create a primitive" not in str(error):
            raise
        raise MemoryError from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def resident_bytes() -> int:
    """This process's resident memory; 0 if the system does not tell. Fast: one short file is read."""
    return int(_STATM.read_bytes().split()[1]) * resource.getpagesize() if _STATM.is_file() else 0


def peak_resident_bytes() -> int:
    """The maximum of this process's resident memory so far; 0 if the system does not tell."""
    return _status_bytes("VmHWM") if _STATUS.is_file() else 0


def _status_bytes(name: str) -> int:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(dict(lines)[name].split()[0]) * 1024


def _limit(kind: int, soft: int, hard: int) -> None:
    """Set a limit, within the hard one that there is."""
    most = resource.getrlimit(kind)[1]
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), most if hard == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(kind, (soft, hard))


def _main(memory_bytes: int, cpu_s: int, command: list[str]) -> NoReturn:
    _limit(resource.RLIMIT_DATA, memory_bytes, memory_bytes)
    _limit(resource.RLIMIT_CPU, cpu_s, cpu_s + _GRACE_S)
    _limit(resource.RLIMIT_CORE, 0, 0)
    os.execv(command[0], command)


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
