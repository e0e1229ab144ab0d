"""The number of processor cores that this process may use."""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def usable_cores(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup"), cores: int | None = None
) -> int:
    """The cores that this process may use by its affinity and by the quota of its control group (version 1 or 2),
    rounded up. groups, mount, cores: where quotas are looked up, and the affinity, for tests."""
    cores = cores or affine_cores()
    quota = min(_quotas(groups, mount), default=math.inf)
    return cores if quota >= cores else max(1, math.ceil(quota))


def affine_cores() -> int:
    """The cores that this process may use by its affinity alone."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _quotas(groups: Path, mount: Path) -> Iterator[float]:
    """The quotas, in cores, of the process's group and its parents."""
    with suppress(OSError, ValueError):
        for line in groups.read_text(errors="surrogateescape").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                roots = (mount, mount / "unified")
            elif "cpu" in controllers.split(","):
                roots = (mount / controllers, mount / "cpu")
            else:
                continue
            for root in roots:
                group = root / path.lstrip("/")
                for folder in (group, *group.parents):
                    if folder.is_relative_to(root):
                        yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """The quota of one group, if it has one."""
    with suppress(OSError, ValueError, ArithmeticError):
        quota, period = map(float, (folder / "cpu.max").read_text().split())  # "max 100000": none
        yield quota / period
    with suppress(OSError, ValueError, ArithmeticError):
        quota, period = (float((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if quota > 0:
            yield quota / period
