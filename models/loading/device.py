"""Devices: which one to run on, in which dtype, with how many threads, and what their failures mean."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from ..catalogue import Dtype
from ..errors import DeviceFailed, ModelError, OutOfDeviceMemory, first_line
from . import spinning
from .cores import usable_cores

DeviceName: TypeAlias = Literal["auto", "cuda", "cpu"]
TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """A device, for `mlbus doctor`. memory_bytes: None for a CPU."""

    device: str
    name: str
    bf16: bool
    threads: int
    memory_bytes: int | None
    torch: str


def pick_device(wanted: DeviceName) -> torch.device:
    """The device to run on; `auto` is CUDA where there is one, else the CPU. Raises ModelError."""
    if wanted != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if wanted != "cuda":
        return torch.device("cpu")
    if torch.version.cuda is None:
        reason = f"this torch ({torch.__version__}) is built without CUDA; install a CUDA build, or choose cpu"
    else:
        reason = "torch finds no usable NVIDIA GPU; check the driver, or choose cpu"
    raise ModelError(f"device 'cuda' is unavailable: {reason}")


def supports_bf16(device: torch.device) -> bool:
    """Whether bfloat16 runs in hardware; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def pick_dtype(wanted: Dtype, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The dtype to try first; `auto` is bf16 where the hardware has it."""
    if wanted != "auto":
        return wanted
    return "bf16" if supports_bf16(device) else "fp32"


def default_threads() -> int:
    """Number of compute threads: every core this process may use, less one for the event loop if there are over two."""
    cores = usable_cores()
    return cores - 1 if cores > 2 else cores


def configure_threads(threads: int) -> None:
    """Set up the calling thread, and the process, for serving: compute threads, full float32, no tokeniser threads.

    Each thread that computes calls it once, before its first forward pass: torch keeps the number per thread, and a
    thread that never calls this takes the one set last when it first computes. Tokenisers run in the caller's own
    thread pool; by default each of their calls would take every core from the forward pass. Their only switch is the
    environment, where a value that the user has set wins.
    """
    torch.set_num_threads(threads)
    torch.get_num_threads()  # reading it fixes it: a later call in another thread would change it here
    torch.set_float32_matmul_precision("highest")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    spinning.adapt(threads)


@contextmanager
def device_errors(device: str, model: str = "") -> Iterator[None]:
    """Translate what torch raises: OutOfDeviceMemory when memory is short, DeviceFailed when the device is lost."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfDeviceMemory(device, model) from error
    except RuntimeError as error:  # the CPU allocator has no class of its own
        raise_if_lost(device, error)
        if "can't allocate memory" not in str(error):
            raise
        raise OutOfDeviceMemory(device, model) from error


def raise_if_lost(device: str, error: Exception) -> None:
    """Raise DeviceFailed if the GPU is lost: then CUDA repeats the error in every later call."""
    if not device.startswith("cuda"):
        return
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as repeated:
        raise DeviceFailed(device, first_line(repeated)) from error


def describe(device: torch.device) -> DeviceReport:
    name, memory_bytes = "CPU " + torch.backends.cpu.get_cpu_capability(), None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        name, memory_bytes = properties.name, properties.total_memory
    return DeviceReport(
        str(device), name, supports_bf16(device), torch.get_num_threads(), memory_bytes, torch.__version__
    )
