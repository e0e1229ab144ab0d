"""From a catalogue entry to an encoder that has proved itself.

Owns the order of steps: locate, check, read, cast, test. What each step does is its own module's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from sentence_transformers import SentenceTransformer

from . import hub, verify
from .catalogue import Dtype, ModelSpec, load_catalogue
from .device import pick_device, pick_dtype
from .encoders.base import Encoder
from .encoders.modules import read_sentence_transformer
from .encoders.torch_encoder import TorchEncoder
from .errors import ModelUnavailable, SelfTestFailed

OnStep = Callable[[str], None]


def load(
    spec: ModelSpec,
    device: Literal["auto", "cuda", "cpu"] = "auto",
    dtype: Dtype | None = None,
    on_step: OnStep = lambda step: None,
) -> Encoder:
    """Load a model and test it against known vectors; blocks for seconds, so not for the event loop.

    `dtype` None means the entry's own. `auto` tries bf16 where the hardware has it, and falls back to fp32, with
    a note, where the vectors come out too different. `on_step` hears of each step, in the present tense.
    Raises ModelUnavailable, DeviceUnavailable, CorruptWeights, SelfTestFailed.
    """
    _require_served(spec)
    target = pick_device(device)
    wanted = dtype or spec.dtype
    on_step("locating the weights")
    folder = hub.locate(spec)
    on_step("checking the weights")
    digest = hub.check_weights(spec, folder)
    on_step("reading the model")
    chosen = pick_dtype(wanted, target)
    try:
        return _tested(spec, digest, folder, target, chosen, on_step)
    except SelfTestFailed as error:
        if wanted != "auto" or chosen == "fp32":
            raise
        on_step("falling back to fp32")
        encoder = _tested(spec, digest, folder, target, "fp32", on_step)
        encoder.notes = (*encoder.notes, f"runs in fp32, because in {chosen} {error}")
        return encoder


def _tested(
    spec: ModelSpec, digest: str, folder: Path, device: torch.device, dtype: str, on_step: OnStep
) -> TorchEncoder:
    """The model without padding where that gives the right vectors, else with it.

    Packed on the CPU only, where it was measured: attention text by text would be many small kernels on a GPU.
    """
    note: tuple[str, ...] = ()
    if device.type == "cpu":
        try:
            return _proved(spec, digest, folder, device, dtype, on_step, packed=True)
        except ModelUnavailable:
            raise
        except Exception as error:  # an architecture that cannot, or computes something else, may raise anything
            on_step("falling back to padded batches")
            note = (f"pads its batches, because packed it fails ({type(error).__name__})",)
    encoder = _proved(spec, digest, folder, device, dtype, on_step, packed=False)
    encoder.notes = note
    return encoder


def _proved(
    spec: ModelSpec, digest: str, folder: Path, device: torch.device, dtype: str, on_step: OnStep, *, packed: bool
) -> TorchEncoder:
    source = _read(spec, folder)
    expected, reference = verify.reference_vectors(spec.id, digest, source)
    encoder = TorchEncoder(spec, digest, source, device, dtype, packed)
    on_step(f"testing the model in {dtype} on {device}")
    verify.self_test(encoder, expected, reference)
    return encoder


def _read(spec: ModelSpec, folder: Path) -> SentenceTransformer:
    try:
        return read_sentence_transformer(folder)
    except Exception as error:  # a foreign folder can make the libraries raise anything
        first_line = str(error).partition("\n")[0]
        reason = f"{folder} cannot be read ({type(error).__name__}: {first_line}); point its entry at a sound copy."
        raise ModelUnavailable(spec.id, reason) from error


def _require_served(spec: ModelSpec) -> None:
    if spec.unserved is None:
        return
    available = ", ".join(other.id for other in load_catalogue() if other.unserved is None)
    reason = "it is in the catalogue, but this version of mlbus does not serve it yet"
    raise ModelUnavailable(spec.id, f"{reason}: {spec.unserved}; available: {available}.")
