"""Child processes for what somebody else made: told little, given little memory, and killed at any time.

Owns what such a process is started with. What it does is its module's business.
"""

import os
import subprocess
import sys
from collections.abc import Sequence

_TOLD = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT")
_SET = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}


def start(module: str, *arguments: str, fds: Sequence[int] = ()) -> "subprocess.Popen[bytes]":
    """Run a module of ours in a process that knows none of our environment's secrets, sees no GPU and computes with one
    thread. fds: what it keeps open of ours. Raises OSError.
    """
    known = {name: os.environ[name] for name in _TOLD if name in os.environ}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        env=known | _SET,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=tuple(fds),
        start_new_session=True,
    )


def end(process: "subprocess.Popen[bytes]") -> None:
    """Kill it, and wait for that."""
    process.kill()
    process.wait()
