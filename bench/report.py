"""What a measurement prints: where and how it ran, a table, and whether the targets were met.

Knows numbers and their names; measures nothing.
"""

import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from .processes import BIN, ROOT

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


def print_setting(module: str, packages: Sequence[str], **facts: object) -> None:
    """Print the machine, the versions and the command line, before anything runs."""
    print(f"command    python -m {module} {shlex.join(sys.argv[1:])}".rstrip())
    print(f"commit     {_output('git', 'describe', '--always', '--dirty')}")
    print(f"machine    {_cpu_model()}, {len(os.sched_getaffinity(0))} cores, {' '.join(cpu_flags()) or 'no flags'}")
    print(f"load       {' '.join(f'{load:.1f}' for load in os.getloadavg())} (1, 5, 15 minutes) at the start")
    versions = [f"{package} {version(package)}" for package in packages]
    server = _output(BIN / "nats-server", "--version").removeprefix("nats-server: ")
    print(f"versions   Python {platform.python_version()}, nats-server {server}, {', '.join(versions)}")
    for name, fact in facts.items():
        print(f"{name:<10} {fact}")
    print(flush=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table; every column but the first is aligned to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print(f"| {' | '.join(cells)} |")
    print()


def print_target(name: str, value: float, target: float, at_most: bool = False) -> None:
    """Print one target, the value reached and whether it is met."""
    met = value <= target if at_most else value >= target
    bound = "<=" if at_most else ">="
    print(f"{'pass' if met else 'MISS'}  {name}: {value:,.5g} (target {bound} {target:,.5g})")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios: rounds alternate, so a slow minute of the machine hits both."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def cpu_flags() -> list[str]:
    """The vector extensions that decide how fast this CPU multiplies matrices."""
    for line in _cpuinfo():
        if line.startswith("flags"):
            present = set(line.split())
            return [flag for flag in _FLAGS if flag in present]
    return []


def _cpu_model() -> str:
    names = (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _output(*command: str | Path) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
