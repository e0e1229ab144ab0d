"""The memory of a process, as Linux counts it."""

import re
from asyncio.subprocess import Process
from pathlib import Path


def resident_kb(process: Process, which: str = "VmRSS") -> int:
    """Memory of the process; VmHWM: the most it ever had."""
    found = re.search(rf"^{which}:\s+(\d+) kB$", Path(f"/proc/{process.pid}/status").read_text(), re.M)
    assert found
    return int(found[1])
