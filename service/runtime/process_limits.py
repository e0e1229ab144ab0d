"""Limits of a child process that reads what somebody else has sent, and a program that becomes a command within them.

    python process_limits.py MEMORY_BYTES CPU_S PROGRAM ARGUMENT...

A program of its own and not a `preexec_fn`, because code between fork and exec can deadlock in a process with threads.
"""

import os
import resource
import sys
from dataclasses import dataclass

_LEFT_S = 5
"""After so much more processor time the system kills what does not heed that it is over."""


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """memory_bytes: what it may allocate; cpu_s: how long it may compute; wall_s: how long it may take."""

    memory_bytes: int
    cpu_s: int
    wall_s: float

    @property
    def launcher(self) -> tuple[str, ...]:
        """What a command is put behind. Past the memory allocations fail; past cpu_s SIGXCPU comes."""
        return (sys.executable, "-I", "-S", __file__, str(self.memory_bytes), str(self.cpu_s))


def main(memory_bytes: int, cpu_s: int, command: list[str]) -> None:
    """Take the limits, and become the command."""
    for kind, soft, hard in (
        (resource.RLIMIT_DATA, memory_bytes, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + _LEFT_S),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        most = resource.getrlimit(kind)[1]
        within = [limit if most == resource.RLIM_INFINITY else min(limit, most) for limit in (soft, hard)]
        resource.setrlimit(kind, (within[0], within[1]))
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
