"""Runs a command that ends when the process that started it ends, even by `kill -9`.

    python die_with_parent.py PARENT_PID SIGNAL PROGRAM ARGUMENT...

It is a program and not a `preexec_fn`, because code between fork and exec can deadlock in a process with threads. On
Linux the kernel sends the signal once the starting thread is gone; elsewhere the command may outlive a killed parent.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, death_signal: int, command: list[str]) -> None:
    """Request the signal, check that the parent is alive, and execute the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent was gone before the command could start")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
