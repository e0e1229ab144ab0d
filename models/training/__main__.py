"""`python -m models.training collect|train|verify RUN`: one step of a run, in a process of its own.

Speaks in events on standard output (progress.py). Exit codes: 0 done; 1 failed for a reason that it said; 2 broken.
"""

import errno
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError

from ..errors import ModelError
from .errors import DiskFull
from .progress import Event, Failed, emit
from .run import RunFolder

Step: TypeAlias = Callable[[RunFolder, Callable[[Event], None]], None]
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHORT = (
    "out of memory; lower batch_size, micro_batch or max_tokens, or give it more memory",
    "out of memory; give it less at once to read",
)


def main(arguments: list[str]) -> int:
    """Do the step -> exit code."""
    step, folder = arguments
    try:
        _step(step)(RunFolder(Path(folder)), emit)
    except ModelError as error:
        emit(Failed(reason=str(error)))
        return 1
    except MemoryError:
        emit(Failed(reason=_SHORT[step == "collect"]))
        return 1
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_disk_full(error):
            raise
        emit(Failed(reason=str(DiskFull(getattr(error, "filename", None) or folder))))
        return 1
    return 0


def _is_disk_full(error: Exception) -> bool:
    """safetensors says it in words, and torch only that its file is not as long as what it wrote."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in str(error) for number in _FULL)
    return "inline_container.cc" in str(error) and "unexpected pos" in str(error)


def _step(name: str) -> Step:
    """Each step imports what it needs: collecting needs no torch."""
    match name:
        case "collect":
            from .data.collect import collect as step
        case "train":
            from .fit.train import train as step
        case "verify":
            from .verify.verify import verify as step
        case _:
            raise SystemExit(f"unknown step {name!r}")
    return step


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception:
        traceback.print_exc()
        sys.exit(2)
