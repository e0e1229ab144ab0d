"""`python -m models.training collect|train|verify RUN`: one step of a run, in its own process.

Writes events to standard output (progress.py). Exit codes: 0 done; 1 failed for a stated reason; 2 an unexpected error.
"""

import errno
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError

from ..errors import ModelError
from .errors import DISK_FULL
from .progress import Emit, Failed, emit
from .run import RunFolder

Step: TypeAlias = Callable[[RunFolder, Emit], None]
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def main(arguments: list[str]) -> int:
    """Run the step -> exit code."""
    step, folder = arguments
    try:
        _step(step)(RunFolder(Path(folder)), emit)
    except ModelError as error:
        reason = str(error)
    except MemoryError:
        advice = "lower batch_size, micro_batch or max_tokens, or give it more memory"
        reason = f"out of memory; {'give it less at once to read' if step == 'collect' else advice}"
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_disk_full(error):
            raise
        reason = DISK_FULL.format(folder=getattr(error, "filename", None) or folder)
    else:
        return 0
    emit(Failed(reason=reason))
    return 1


def _is_disk_full(error: Exception) -> bool:
    """Whether an error means a full disk. safetensors reports it in its message, torch as a file of the wrong size."""
    if isinstance(error, OSError):
        return error.errno in _NO_SPACE
    if isinstance(error, SafetensorError):
        return any(f"(os error {number})" in str(error) for number in _NO_SPACE)
    return "inline_container.cc" in str(error) and "unexpected pos" in str(error)


def _step(name: str) -> Step:
    """Import only what the step needs: collecting needs no torch."""
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
