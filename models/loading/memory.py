"""Memory of a device: how much is free, how much a model will take, and how it is given back to the system."""

import ctypes
import functools
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from ..catalogue import Dtype, Quantization

MARGIN_BYTES = 1 << 30
MARGIN_SHARE = 0.1
"""Kept free for activations, arenas and other processes: a gibibyte or a tenth, whichever is more."""

_M_ARENA_MAX = -8
_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.01, "int4": 0.64}
"""Estimated bytes of a weight, with the scales of quantised ones; the budget counts what is measured after the load."""
_POSITIONS = ("wpe", "position")
_EMBEDDINGS = ("embed", "wte")
_OUTPUTS = ("lm_head", "embed_out")
"""Parts of the names of weights, as most architectures have them."""


def default_budget(device: str) -> int:
    """Bytes that models may take on a device ("cpu", "cuda:0"): its free memory, less a margin."""
    free, total = device_memory(device)
    return max(0, free - max(MARGIN_BYTES, int(MARGIN_SHARE * total)))


def device_memory(device: str) -> tuple[int, int]:
    """Free and total bytes of a device; 4 GiB if the system does not say."""
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(torch.device(device))
        return int(free), int(total)
    return _host_memory()


def _host_memory(group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Memory of this machine, or of the control group of this process; cached pages of files count as free."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        facts = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        free, total = facts["MemAvailable"], facts["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        with suppress(ValueError, OSError):
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            return total // 2, total
        return 4 << 30, 4 << 30
    limit = _number(group / "memory.max")
    if limit is None or limit >= total:
        return free, total
    used = _number(group / "memory.current") or 0
    with suppress(OSError, ValueError, KeyError):
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used -= int(stat["active_file"]) + int(stat["inactive_file"])
    return min(free, limit - used), limit


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return None


def estimated_bytes(
    files: Sequence[Path], dtype: Dtype, quantization: Quantization | None = None, generates: bool = False
) -> int:
    """Estimate the bytes of weights once loaded, from the headers of their files.

    Weights of safetensors count in `dtype`, with `quantization` in that: matrices, except embeddings. The embedding of
    a model that generates text and has no output layer of its own is then int8. Other files (ONNX graphs) count by
    their size.
    """
    tensors = [tensor for file in files if file.suffix == ".safetensors" for tensor in stored_shapes(file)]
    plain = _BYTES.get(dtype, _BYTES["fp32"])
    linear = embedding = plain
    if quantization:
        linear = _BYTES[quantization]
        has_output = any(part in name for name, _ in tensors for part in _OUTPUTS)
        embedding = _BYTES["int8"] if generates and not has_output else plain
    widths = {"linear": linear, "embedding": embedding, "other": plain}
    graphs = sum(file.stat().st_size for file in files if file.suffix != ".safetensors")
    return graphs + int(sum(math.prod(shape) * widths[_kind_of(name, shape)] for name, shape in tensors))


def _kind_of(name: str, shape: Sequence[int]) -> Literal["linear", "embedding", "other"]:
    if len(shape) != 2 or any(part in name for part in _POSITIONS):
        return "other"
    return "embedding" if any(part in name for part in _EMBEDDINGS) else "linear"


def stored_shapes(file: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes of the tensors in a safetensors file, from its header."""
    with safe_open(file, framework="numpy") as tensors:
        return [(name, tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118  no mapping


def bound_arenas() -> None:
    """Limit glibc to two arenas for all threads; to be called before the first are made.

    By default each thread gets one, which keeps up to 64 MB of what small weights and batches took.
    """
    if libc := _libc():
        libc.mallopt(_M_ARENA_MAX, 2)


def give_back(device: str = "cpu") -> None:
    """Have the allocators return the memory of closed models to the device and to the operating system now."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
    if libc := _libc():
        libc.malloc_trim(0)


@functools.cache
def _libc() -> Any:
    """glibc; None with other C libraries."""
    if not sys.platform.startswith("linux"):
        return None
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if libc.mallopt and libc.malloc_trim:
            return libc
    return None
