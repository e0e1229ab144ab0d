"""`python -m models.training collect|train|verify RUN`: one step of a run, in a process of its own.

Speaks in events on standard output (progress.py). Exit codes: 0 done; 1 failed for a reason that it said; 2 broken.
"""

import errno
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from ..errors import ModelError
from .errors import DiskFull
from .progress import Event, Failed, emit
from .run import RunFolder

Step: TypeAlias = Callable[[RunFolder, Callable[[Event], None]], None]


def main(arguments: list[str]) -> int:
    """Do the step -> exit code."""
    step, folder = arguments
    try:
        _step(step)(RunFolder(Path(folder)), emit)
    except ModelError as error:
        emit(Failed(reason=str(error)))
        return 1
    except MemoryError:
        emit(Failed(reason="out of memory; lower batch_size, micro_batch or max_tokens, or give it more memory"))
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        emit(Failed(reason=str(DiskFull(error.filename or folder))))
        return 1
    return 0


def _step(name: str) -> Step:
    """Each step imports what it needs: collecting needs no torch."""
    match name:
        case "collect":
            from .collect import collect as step
        case "train":
            from .trainer import train as step
        case "verify":
            from .examine import verify as step
        case _:
            raise SystemExit(f"unknown step {name!r}")
    return step


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception:
        traceback.print_exc()
        sys.exit(2)
