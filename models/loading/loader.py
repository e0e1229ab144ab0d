"""Loads a model of the catalogue and tests it: locate, check, read, quantise, self-test."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import torch

from ..catalogue import Dtype, GraphDtype, Kind, ModelSpec, Quantization
from ..encoders.base import Encoder, Vectors
from ..encoders.modules import read_sentence_transformer, static_embedding
from ..encoders.onnx_encoder import OnnxEncoder
from ..encoders.onnx_session import OnnxOptions
from ..encoders.sentence_encoder import SentenceEncoder, StaticEncoder
from ..encoders.torch_encoder import TorchEncoder
from ..errors import CannotQuantize, ModelError, ModelUnavailable, SelfTestFailed, cause_text
from ..generation.causal_lm import CausalLM
from ..generation.errors import NonFiniteLogits
from ..generation.load import Checkpoint
from ..weights import gguf, hub, model_files
from ..weights.hub_pull import OnStep
from . import self_test
from .device import TORCH_DTYPES, DeviceName, device_errors, pick_device, pick_dtype
from .load_cache import LoadCache
from .memory import estimated_bytes, give_back
from .reading import READ_LOCK

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where and how a model is loaded. dtype, quantization: None is the entry's own; folder: other weights than those.

    dtype `auto` tries bf16 where the hardware has it, and falls back to fp32, with a note, if the self-test fails.
    threads, memory_limit_bytes: for ONNX Runtime; torch has its own (device.configure_threads).
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
    """Load an embedding model and test it against known vectors; blocks for seconds.

    Raises ModelUnavailable, CorruptWeights, SelfTestFailed, OutOfDeviceMemory; ModelError if there is no such device.
    """
    _require_kind(spec, "embedding", "it makes no vectors")
    read: Callable[[_Loading], Encoder] = _Loading.onnx_encoder if spec.served_by == "onnx" else _Loading.encoder
    return _loaded(spec, options, on_step, read)


def load_generator(
    spec: ModelSpec,
    options: LoadOptions = LoadOptions(),
    on_step: OnStep = lambda step: None,
) -> CausalLM:
    """Load a model that generates text and test it; blocks for seconds.

    Raises ModelUnavailable, CorruptWeights, NonFiniteLogits, OutOfDeviceMemory; ModelError where there is no such
    device.
    """
    _require_kind(spec, "generation", "it generates no text")
    return _loaded(spec, options, on_step, _Loading.causal_lm)


def _require_kind(spec: ModelSpec, kind: Kind, reason: str) -> None:
    if spec.kind != kind:
        raise ModelUnavailable(spec.id, f"{reason}; choose a model whose kind is {kind}")


def _loaded(spec: ModelSpec, options: LoadOptions, on_step: OnStep, read: "Callable[[_Loading], T]") -> T:
    """Find the weights and read them; whatever fails is raised as a ModelError."""
    device = pick_device(options.device)
    on_step("locating the weights")
    spec, folder = located(spec, options, on_step)
    try:
        with READ_LOCK, device_errors(str(device), spec.id):
            model = read(_Loading(spec, folder, device, options, on_step))
    except ModelError:
        raise
    except Exception as error:  # a foreign model can make the libraries raise anything
        reason = f"{folder} cannot be used ({cause_text(error)}); {model_files.next_step(spec)}"
        raise ModelUnavailable(spec.id, reason) from error
    give_back(str(device))  # what reading left behind, half as much again as the weights
    return model


def located(spec: ModelSpec, options: LoadOptions, on_step: OnStep = lambda step: None) -> tuple[ModelSpec, Path]:
    """The folder that a model is read from, and its entry without the pins if these are not for that folder.

    A GGUF file is checked and converted first, unless that has been done. Raises ModelUnavailable, CorruptWeights.
    """
    folder = options.folder or hub.locate(spec, options.download, graph_dtype(spec, options))
    if options.folder is None:
        if not model_files.has_gguf(spec, folder):
            return spec, folder
        digest = model_files.check_weights(spec, folder, options.cache.sha256)
        folder = gguf.converted(spec, folder / str(spec.gguf), digest, options.cache.folder, on_step)
    return spec.model_copy(update={"sha256": {}, "gguf": None}), folder


def expected_bytes(spec: ModelSpec, options: LoadOptions, on_step: OnStep = lambda step: None) -> tuple[str, int]:
    """The device that a model will be loaded on, and an estimate of its bytes there. Raises what `load` does."""
    device = pick_device(options.device)
    spec, folder = located(spec, options, on_step)
    names = model_files.weight_files(spec, folder, graph_dtype(spec, options))
    model_files.require_whole(spec, folder, names)
    files = [folder / name for name in names]
    dtype = pick_dtype(options.dtype or spec.dtype, device)
    quantization = options.quantization or spec.quantization
    return str(device), estimated_bytes(files, dtype, quantization, generates=spec.kind == "generation")


def graph_dtype(spec: ModelSpec, options: LoadOptions) -> GraphDtype | None:
    """The ONNX graph that a model is loaded from, None for torch. Raises ModelError where there is no such device."""
    if spec.served_by != "onnx":
        return None
    return _onnx_dtype(spec, pick_device(options.device).type, options.dtype)


@dataclass(frozen=True, slots=True)
class _Loading:
    """A model that has been located and is being read."""

    spec: ModelSpec
    folder: Path
    device: torch.device
    options: LoadOptions
    on_step: OnStep

    def encoder(self) -> SentenceEncoder:
        """An embedding model that torch runs."""
        digest = self._checked()
        self.on_step("looking up the vectors that it should give")
        expected, reference = self_test.reference_vectors(self.spec, digest, self.folder, self.options.cache)
        encoder, notes = self._in_best_dtype(lambda dtype: self._tested(digest, dtype, expected, reference))
        encoder.notes = (*encoder.notes, *notes)
        return encoder

    def causal_lm(self) -> CausalLM:
        """A model that generates text."""
        checkpoint = Checkpoint(self.spec, self.folder, self._checked(), self.device, self.on_step)
        model, notes = self._in_best_dtype(lambda dtype: checkpoint.load(dtype, self._quantization))
        return replace(model, facts=replace(model.facts, notes=(*model.facts.notes, *notes)))

    def onnx_encoder(self) -> OnnxEncoder:
        """An ONNX graph: in the dtype asked for, else in fp16 on a GPU where the entry names that, else in fp32."""
        spec, wanted, where = self.spec, self.options.dtype, self.device.type
        if self.options.quantization is not None:
            reason = f"an ONNX graph is not made {self.options.quantization}; load it without that"
            raise ModelUnavailable(spec.id, reason)
        encoder = self._opened(where, _onnx_dtype(spec, where, wanted))
        if encoder.device == "cpu" and where != "cpu":
            dtype = _onnx_dtype(spec, "cpu", wanted)
            encoder = encoder if dtype == encoder.dtype else self._opened("cpu", dtype)
            encoder.notes = (*encoder.notes, "runs on the CPU, because ONNX Runtime cannot use the GPU")
        if wanted not in (None, "auto", encoder.dtype):
            encoder.notes = (*encoder.notes, f"runs in {encoder.dtype}, because its entry names no {wanted} graph")
        return encoder

    @property
    def _quantization(self) -> Quantization | None:
        return self.options.quantization or self.spec.quantization

    def _checked(self, graph: GraphDtype | None = None) -> str:
        """Check the weights -> their digest."""
        self.on_step("checking the weights")
        return model_files.check_weights(self.spec, self.folder, self.options.cache.sha256, graph)

    def _in_best_dtype(self, read: Callable[[str], T]) -> tuple[T, tuple[str, ...]]:
        """The model in the dtype wanted; for `auto` in fp32, with a note, if it fails its test in a smaller one."""
        wanted = self.options.dtype or self.spec.dtype
        dtype = pick_dtype(wanted, self.device)
        try:
            return read(dtype), ()
        except (SelfTestFailed, NonFiniteLogits) as error:
            if wanted != "auto" or dtype == "fp32":
                raise
            note = f"runs in fp32, because in {dtype} {error}"
        self.on_step("falling back to fp32")
        return read("fp32"), (note,)

    def _tested(self, digest: str, dtype: str, expected: Vectors, reference: str) -> SentenceEncoder:
        """The encoder without padding if that gives the right vectors, else with it.

        Packed on the CPU only, where it was measured: on a GPU attention text by text would be many small kernels.
        """
        spec = self.spec
        self.on_step("reading the model")
        source = read_sentence_transformer(spec, self.folder, TORCH_DTYPES[dtype])
        kind = StaticEncoder if static_embedding(source) else TorchEncoder
        try:
            encoder = kind(spec, digest, source, self.device, self._quantization)
        except CannotQuantize as error:
            raise ModelUnavailable(spec.id, f"{error}; load it without that") from error
        self.on_step(f"testing the model in {dtype} on {self.device}")
        if isinstance(encoder, TorchEncoder) and self.device.type == "cpu":
            try:
                encoder.pack()
                self_test.self_test(encoder, expected, reference, spec.min_cosine)
                return encoder
            except Exception as error:  # an architecture that cannot, or computes something else, may raise anything
                self.on_step("falling back to padded batches")
                encoder.pad()
                encoder.notes = (f"pads its batches, because packed it fails ({type(error).__name__})",)
        self_test.self_test(encoder, expected, reference, spec.min_cosine)
        return encoder

    def _opened(self, device: str, dtype: GraphDtype) -> OnnxEncoder:
        """The encoder of a graph: of batches, or of one text at a time if its batches fail the test."""
        spec, options = self.spec, self.options
        digest = self._checked(dtype)
        self.on_step("reading the model")
        where: Literal["cpu", "cuda"] = "cuda" if device == "cuda" else "cpu"
        limits = OnnxOptions(where, dtype, options.threads, options.memory_limit_bytes)
        encoder = OnnxEncoder(spec, digest, self.folder, limits)
        self.on_step(f"testing the model in {dtype} on {encoder.device}")
        try:
            self_test.graph_test(encoder, spec, digest)
        except SelfTestFailed as error:  # as with quantised graphs, which scale the numbers of all texts together
            self.on_step("falling back to one text at a time")
            encoder.run_alone()
            self_test.graph_test(encoder, spec, digest)
            encoder.notes = (*encoder.notes, f"runs one text at a time, because in a batch {error}")
        return encoder


def _onnx_dtype(spec: ModelSpec, device: str, wanted: Dtype | None) -> GraphDtype:
    return spec.graph(wanted, spec.dtype, "fp16" if device == "cuda" else "fp32")
