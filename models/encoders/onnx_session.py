"""An ONNX graph under ONNX Runtime: opened with limits on threads and memory, run, its errors translated."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnxruntime
from numpy.typing import NDArray

from ..catalogue import GraphDtype, ModelSpec
from ..errors import DeviceFailed, ModelUnavailable, OutOfDeviceMemory
from ..loading.device import raise_if_lost
from ..weights.model_files import next_step, weight_files

Array: TypeAlias = NDArray[Any]

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
FATAL_ONLY = 4
SHORT_OF_MEMORY = re.compile(
    "failed to allocate|out of memory|bad.?alloc|smaller than requested bytes|ALLOC_FAILED", re.I
)
_PREFIXES = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:|/onnxruntime_src/.*\) (?=[A-Z])"
)


@dataclass(frozen=True, slots=True)
class OnnxOptions:
    """Where and how to run a graph. memory_limit_bytes: of the GPU's arena, weights included; None: no limit."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: GraphDtype = "fp32"
    threads: int = 1
    memory_limit_bytes: int | None = None


class Graph:
    """An open graph. device: where it really runs, cpu or cuda:0. inputs: by name.

    Its memory is freed with the object.
    """

    def __init__(self, spec: ModelSpec, folder: Path, options: OnnxOptions) -> None:
        """Raises ModelUnavailable if the graph cannot be read, OutOfDeviceMemory."""
        self._spec = spec
        self.name = _graph_name(spec, options.dtype)
        files = weight_files(spec, folder, options.dtype)  # includes external data
        self.weight_bytes = sum((folder / name).stat().st_size for name in files)
        with self._translated("open", options.device, next_step(spec)):
            self._session = _open(folder / self.name, options)
        self.device = "cuda:0" if CUDA in self._session.get_providers() else "cpu"
        self.notes: tuple[str, ...] = ()
        if options.device == "cuda" and self.device == "cpu":
            self.notes = (f"runs on the CPU, because ONNX Runtime {onnxruntime.__version__} could not start on CUDA",)
        self.inputs = {each.name: each for each in self._session.get_inputs()}
        self.outputs = tuple(each.name for each in self._session.get_outputs())
        self._run_options = onnxruntime.RunOptions()
        # Unless shrunk after each run, the arena keeps for ever what the largest batch took.
        self._run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def trial(self, feeds: Mapping[str, Array], task: str | None = None) -> dict[str, Array]:
        """A first run: all outputs by name. `task`: the name of the task that `feeds` select, if any.

        Raises ModelUnavailable, OutOfDeviceMemory.
        """
        remedy = f"correct the task {task!r} in its entry, or " if task else ""
        with self._translated("run", self.device, remedy + next_step(self._spec)):
            return dict(zip(self.outputs, self.run(feeds, self.outputs), strict=True))

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> list[Array]:
        """The wanted outputs, on the host. feeds: contiguous host arrays by input name. Raises OutOfDeviceMemory."""
        binding = self._session.io_binding()
        with _device_errors(self.device):
            for name, value in feeds.items():
                binding.bind_cpu_input(name, value)
            for name in wanted:
                binding.bind_output(name, "cpu")
            self._session.run_with_iobinding(binding, self._run_options)
            return [output.numpy() for output in binding.get_outputs()]

    @contextmanager
    def _translated(self, verb: str, device: str, remedy: str) -> Iterator[None]:
        try:
            with _device_errors(device, self._spec.id):
                yield
        except (OutOfDeviceMemory, DeviceFailed):
            raise
        except Exception as error:  # its exceptions have no common base
            reason = textwrap.shorten(_PREFIXES.sub("", str(error)), 200)
            remedy = "export it with an older opset" if "opset" in reason.lower() else remedy
            reason = f"ONNX Runtime cannot {verb} {self.name} ({reason}); {remedy}"
            raise ModelUnavailable(self._spec.id, reason) from error


def _graph_name(spec: ModelSpec, dtype: GraphDtype) -> str:
    if dtype not in spec.onnx_files:
        known = ", ".join(spec.onnx_files)
        raise ModelUnavailable(spec.id, f"its entry names no {dtype} graph; choose {known}, or add it to `onnx_files`")
    return spec.onnx_files[dtype]


def _open(path: Path, options: OnnxOptions) -> onnxruntime.InferenceSession:
    # For the whole process: there is no other switch for what a provider logs when it fails to start.
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = FATAL_ONLY
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are shared with torch
    settings.enable_mem_pattern = False  # plans per input shape, and every batch has its own
    return onnxruntime.InferenceSession(str(path), settings, providers=_providers(options))


def _providers(options: OnnxOptions) -> list[Any]:
    if options.device == "cpu" or CUDA not in onnxruntime.get_available_providers():
        return [CPU]
    arena = {"device_id": "0", "arena_extend_strategy": "kSameAsRequested"}
    if options.memory_limit_bytes is not None:
        arena["gpu_mem_limit"] = str(options.memory_limit_bytes)
    return [(CUDA, arena), CPU]


@contextmanager
def _device_errors(device: str, model: str = "") -> Iterator[None]:
    """Raise OutOfDeviceMemory for ONNX Runtime's memory errors, which have no class, and DeviceFailed for a lost
    device."""
    try:
        yield
    except Exception as error:
        raise_if_lost(device, error)
        if not isinstance(error, MemoryError) and not SHORT_OF_MEMORY.search(str(error)):
            raise
        raise OutOfDeviceMemory(device, model) from error
