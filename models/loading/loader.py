"""From a catalogue entry to a model that has proved itself: an encoder, or what an engine generates text with.

Owns the order of steps: locate, check, read, quantise, test. What each step does is its own module's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch

from ..catalogue import Dtype, GraphDtype, Kind, ModelSpec, Quantization
from ..encoders.base import Encoder, Vectors
from ..encoders.modules import read_sentence_transformer, static_embedding
from ..encoders.onnx_encoder import OnnxEncoder, OnnxOptions
from ..encoders.sentence_encoder import SentenceEncoder
from ..encoders.static_encoder import StaticEncoder
from ..encoders.torch_encoder import TorchEncoder
from ..errors import CannotQuantize, ModelError, ModelUnavailable, SelfTestFailed
from ..generation.causal_lm import CausalLM, Checkpoint
from ..generation.errors import NonFiniteLogits
from ..weights import gguf, hub, model_files
from . import self_test
from .device import TORCH_DTYPES, DeviceName, memory_errors, pick_device, pick_dtype
from .load_cache import LoadCache
from .memory import estimated_bytes, give_back
from .quiet import READING

OnStep = Callable[[str], None]
T = TypeVar("T")
LoadBy = Callable[[ModelSpec, Path, torch.device, "LoadOptions", OnStep], T]


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where and how a model is loaded. dtype, quantization: None is the entry's own; folder: other weights than those.

    dtype `auto` tries bf16 where the hardware has it, and falls back to fp32, with a note, where the vectors come out
    too different, or the scores of tokens not finite. threads, memory_limit_bytes: for ONNX Runtime; torch has its own
    (device.configure_threads).
    """

    device: DeviceName = "auto"
    dtype: Dtype | None = None
    quantization: Quantization | None = None
    folder: Path | None = None
    download: bool = True
    threads: int = 1
    memory_limit_bytes: int | None = None
    cache: LoadCache = field(default_factory=LoadCache)


def load(
    spec: ModelSpec,
    options: LoadOptions = LoadOptions(),
    on_step: OnStep = lambda step: None,
) -> Encoder:
    """Load an embedding model and test it against known vectors; blocks for seconds, so not for the event loop.

    `on_step` hears of each step, in the present tense. Raises ModelUnavailable, ModelError, CorruptWeights,
    SelfTestFailed, OutOfDeviceMemory.
    """
    _require_kind(spec, "embedding", "it makes no vectors")
    load_by: LoadBy[Encoder] = _load_onnx if spec.served_by == "onnx" else _load_torch
    return _loaded(spec, options, on_step, load_by)


def load_generator(
    spec: ModelSpec,
    options: LoadOptions = LoadOptions(),
    on_step: OnStep = lambda step: None,
) -> CausalLM:
    """Load a generation model and test it, as generation.verify says; blocks for seconds.

    `on_step` hears of each step. Raises ModelUnavailable, ModelError, CorruptWeights, NonFiniteLogits,
    OutOfDeviceMemory.
    """
    _require_kind(spec, "generation", "it generates no text")
    return _loaded(spec, options, on_step, _load_causal_lm)


def _require_kind(spec: ModelSpec, kind: Kind, reason: str) -> None:
    if spec.kind != kind:
        raise ModelUnavailable(spec.id, f"{reason}; choose a model whose kind is {kind}")


def _loaded(
    spec: ModelSpec,
    options: LoadOptions,
    on_step: OnStep,
    load_by: LoadBy[T],
) -> T:
    """Find the weights and load them, with errors of ours alone."""
    device = pick_device(options.device)
    on_step("locating the weights")
    spec, folder = located(spec, options, on_step)
    try:
        with READING, memory_errors(str(device), spec.id):
            model = load_by(spec, folder, device, options, on_step)
    except ModelError:
        raise
    except Exception as error:  # a foreign model can make the libraries raise anything
        first_line = str(error).partition("\n")[0]
        reason = f"{folder} cannot be used ({type(error).__name__}: {first_line}); {model_files.next_step(spec)}"
        raise ModelUnavailable(spec.id, reason) from error
    give_back(str(device))  # what reading left behind, half as much again as the weights
    return model


def located(spec: ModelSpec, options: LoadOptions, on_step: OnStep = lambda step: None) -> tuple[ModelSpec, Path]:
    """The folder that a model is read from, and its entry as it holds for that folder: the entry pins its own weights.

    A GGUF file is checked and converted first, where it is not yet. Raises ModelUnavailable, CorruptWeights.
    """
    folder = options.folder or hub.locate(spec, options.download, graph_dtype(spec, options))
    if options.folder is None:
        if not model_files.has_gguf(spec, folder):
            return spec, folder
        digest = model_files.check_weights(spec, folder, options.cache.sha256)
        folder = gguf.converted(spec, folder / str(spec.gguf), digest, options.cache.folder, on_step)
    return spec.model_copy(update={"sha256": {}, "gguf": None}), folder


def expected_bytes(spec: ModelSpec, options: LoadOptions, on_step: OnStep = lambda step: None) -> tuple[str, int]:
    """Where a model will be loaded, and about how many bytes it will take there. Raises what `load` does."""
    device = pick_device(options.device)
    spec, folder = located(spec, options, on_step)
    names = model_files.weight_files(spec, folder, graph_dtype(spec, options))
    model_files.require_whole(spec, folder, names)
    files = [folder / name for name in names]
    dtype = pick_dtype(options.dtype or spec.dtype, device)
    quantization = options.quantization or spec.quantization
    return str(device), estimated_bytes(files, dtype, quantization, generates=spec.kind == "generation")


def graph_dtype(spec: ModelSpec, options: LoadOptions) -> GraphDtype | None:
    """Which of its ONNX graphs a model is loaded from; None where torch runs it. Raises ModelError."""
    if spec.served_by != "onnx":
        return None
    return _onnx_dtype(spec, pick_device(options.device).type, options.dtype)


def _load_torch(
    spec: ModelSpec, folder: Path, device: torch.device, options: LoadOptions, on_step: OnStep
) -> SentenceEncoder:
    wanted = options.dtype or spec.dtype
    quantization = options.quantization or spec.quantization
    dtype = pick_dtype(wanted, device)
    on_step("checking the weights")
    loading = _Loading(spec, folder, model_files.check_weights(spec, folder, options.cache.sha256), device, on_step)
    on_step("looking up the vectors that it should give")
    expected, reference = self_test.reference_vectors(spec, loading.digest, folder, options.cache)
    try:
        return loading.proved(dtype, quantization, expected, reference)
    except SelfTestFailed as error:
        if wanted != "auto" or dtype == "fp32":
            raise
        on_step("falling back to fp32")
        encoder = loading.proved("fp32", quantization, expected, reference)
        encoder.notes = (*encoder.notes, f"runs in fp32, because in {dtype} {error}")
        return encoder


@dataclass(frozen=True, slots=True)
class _Loading:
    """A torch model on its way: checked weights, not yet read."""

    spec: ModelSpec
    folder: Path
    digest: str
    device: torch.device
    on_step: OnStep

    def proved(
        self, dtype: str, quantization: Quantization | None, expected: Vectors, reference: str
    ) -> SentenceEncoder:
        """The model without padding where that gives the right vectors, else with it.

        Packed on the CPU only, where it was measured: attention text by text would be many small kernels on a GPU.
        """
        self.on_step("reading the model")
        source = read_sentence_transformer(self.spec, self.folder, TORCH_DTYPES[dtype])
        kind = StaticEncoder if static_embedding(source) else TorchEncoder
        try:
            encoder = kind(self.spec, self.digest, source, self.device, quantization)
        except CannotQuantize as error:
            raise ModelUnavailable(self.spec.id, f"{error}; load it without that") from error
        self.on_step(f"testing the model in {dtype} on {self.device}")
        if isinstance(encoder, TorchEncoder) and self.device.type == "cpu":
            try:
                encoder.pack()
                self_test.self_test(encoder, expected, reference, self.spec.min_cosine)
                return encoder
            except Exception as error:  # an architecture that cannot, or computes something else, may raise anything
                self.on_step("falling back to padded batches")
                encoder.pad()
                encoder.notes = (f"pads its batches, because packed it fails ({type(error).__name__})",)
        self_test.self_test(encoder, expected, reference, self.spec.min_cosine)
        return encoder


def _load_causal_lm(
    spec: ModelSpec, folder: Path, device: torch.device, options: LoadOptions, on_step: OnStep
) -> CausalLM:
    wanted = options.dtype or spec.dtype
    quantization = options.quantization or spec.quantization
    dtype = pick_dtype(wanted, device)
    on_step("checking the weights")
    digest = model_files.check_weights(spec, folder, options.cache.sha256)
    checkpoint = Checkpoint(spec, folder, digest, device, on_step)
    try:
        return checkpoint.load(dtype, quantization)
    except NonFiniteLogits as error:
        if wanted != "auto" or dtype == "fp32":
            raise
        on_step("falling back to fp32")
        loaded = checkpoint.load("fp32", quantization)
        return replace(loaded, notes=(*loaded.notes, f"runs in fp32, because in {dtype} {error}"))


def _load_onnx(
    spec: ModelSpec, folder: Path, device: torch.device, options: LoadOptions, on_step: OnStep
) -> OnnxEncoder:
    """An ONNX graph: in the dtype that is asked for, else in fp16 on a GPU where the entry names that, else in fp32."""
    if options.quantization is not None:
        raise ModelUnavailable(spec.id, f"an ONNX graph is not made {options.quantization}; load it without that")
    encoder = _opened(spec, folder, device.type, _onnx_dtype(spec, device.type, options.dtype), options, on_step)
    if encoder.device == "cpu" and device.type != "cpu":
        dtype = _onnx_dtype(spec, "cpu", options.dtype)
        encoder = encoder if dtype == encoder.dtype else _opened(spec, folder, "cpu", dtype, options, on_step)
        encoder.notes = (*encoder.notes, "runs on the CPU, because ONNX Runtime cannot use the GPU")
    if options.dtype not in (None, "auto", encoder.dtype):
        encoder.notes = (*encoder.notes, f"runs in {encoder.dtype}, because its entry names no {options.dtype} graph")
    return encoder


def _opened(
    spec: ModelSpec, folder: Path, device: str, dtype: GraphDtype, options: LoadOptions, on_step: OnStep
) -> OnnxEncoder:
    on_step("checking the weights")
    digest = model_files.check_weights(spec, folder, options.cache.sha256, dtype)
    on_step("reading the model")
    where: Literal["cpu", "cuda"] = "cuda" if device == "cuda" else "cpu"
    encoder = OnnxEncoder(spec, digest, folder, OnnxOptions(where, dtype, options.threads, options.memory_limit_bytes))
    on_step(f"testing the model in {dtype} on {encoder.device}")
    try:
        _prove(encoder, spec, digest)
    except SelfTestFailed as error:  # as quantised graphs do, which scale the numbers of all texts together
        on_step("falling back to one text at a time")
        encoder.run_alone()
        _prove(encoder, spec, digest)
        encoder.notes = (*encoder.notes, f"runs one text at a time, because in a batch {error}")
    return encoder


def _prove(encoder: OnnxEncoder, spec: ModelSpec, digest: str) -> None:
    expected = self_test.golden_vectors(self_test.GOLDEN / f"{spec.id}.json", digest)
    if expected is None:
        self_test.consistency_test(encoder)
    else:
        self_test.self_test(encoder, expected, "its golden vectors", spec.min_cosine)


def _onnx_dtype(spec: ModelSpec, device: str, asked: Dtype | None) -> GraphDtype:
    for wanted in (asked, spec.dtype, "fp16" if device == "cuda" else "fp32"):
        for dtype in spec.onnx_files:
            if dtype == wanted:
                return dtype
    return next(iter(spec.onnx_files))
