"""The memory and time of a training: estimated from the files of the weights, then measured on its first batches."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...catalogue import ModelSpec
from ...errors import ModelUnavailable
from ...loading.footprint import folder_config
from ...sandbox.limits import peak_resident_bytes
from ...weights import model_files
from ..errors import CannotTrain
from ..run import TrainingOptions
from .batches import Example
from .method import Method, choose_method, stored_tensors
from .texts import MAX_TOKENS

STATES = 4
"""Float32 copies of what is trained: the weights, their gradients and the optimiser's two averages."""
KEPT_WIDTHS = 12
"""Activations that a layer keeps per token for the backward pass, in hidden sizes, beside its inner ones."""
MIXED_BYTES = 3
"""Of an activation where matrices are multiplied in bf16: norms and activation functions keep float32."""
MARGIN = 1.25
FIXED_BYTES = 256 << 20
"""Allocated by the libraries when they first compute, and for vectors and token ids."""
STATE_BYTES = 16
"""Of a trained weight, missing from the measured steps: the optimiser's two averages, and as much for its
intermediate values or while a checkpoint is written."""
WRITTEN_BYTES = 8
"""Of any weight, at the end: the candidate in float32, and the same again while it is written."""
_SIZES = (
    ("hidden_size", "dim", "d_model"),
    ("num_hidden_layers", "n_layers", "num_layers"),
    ("intermediate_size", "hidden_dim", "d_ff"),
)


def check_trainable(entry: ModelSpec, base: Path) -> None:
    """Check that an entry's model can be trained from the weights in a folder. Raises CannotTrain."""
    if entry.kind != "embedding":
        raise CannotTrain(entry.id, "it generates text, and only embedding models are trained; choose one of those")
    if entry.served_by == "onnx":
        raise CannotTrain(
            entry.id,
            "it is served as an ONNX graph, which cannot learn; add an entry for its torch form and train that",
        )
    if model_files.is_static(base):
        raise CannotTrain(entry.id, "it is a table of token vectors without layers, and only transformers are trained")
    if not base.is_dir():
        raise CannotTrain(entry.id, f"its weights are not in {base}; fetch them first: mlbus models pull {entry.id}")
    try:
        files = model_files.weight_files(entry, base)
        model_files.require_whole(entry, base, files)
    except ModelUnavailable as error:
        raise CannotTrain(entry.id, error.reason) from error


def training_bytes(entry: ModelSpec, base: Path, options: TrainingOptions) -> tuple[str, int]:
    """The device a model would be trained on, and an estimate of the bytes it takes there.

    Reads headers and configurations only. Raises CannotTrain, ModelError.
    """
    check_trainable(entry, base)
    method = choose_method(entry, base, options, "auto")
    shapes = [shape for _, shape in stored_tensors(entry, base)]
    parameters = sum(map(math.prod, shapes))
    if method.lora:
        adapters = sum(sum(shape) * options.lora_rank for shape in shapes if len(shape) == 2)
        held = parameters * method.base_dtype.itemsize + adapters * 4 * STATES
    else:
        held = parameters * 4 * STATES + (parameters * 2 if method.bf16 else 0)
    total = held + _activation_bytes(entry, base, options, method)
    if method.device.type == "cpu":
        total = max(total, parameters * WRITTEN_BYTES)
    return str(method.device), int(total * MARGIN) + FIXED_BYTES


def _activation_bytes(entry: ModelSpec, base: Path, options: TrainingOptions, method: Method) -> int:
    try:
        config = folder_config(base)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CannotTrain(entry.id, f"the configuration in {base} cannot be read; use a complete copy") from error
    hidden, layers, inner = (_size(config, *names) for names in _SIZES)
    tokens = min(options.max_tokens or MAX_TOKENS, entry.max_tokens or MAX_TOKENS)
    columns = 2 + max(options.hard_negatives, options.loss == "triplet")
    rows = min(options.micro_batch or options.batch_size, options.batch_size) * columns
    width = MIXED_BYTES if method.bf16 else 4
    layer = (KEPT_WIDTHS * hidden + 3 * inner) * width
    kept = layer + layers * hidden * width if method.checkpointing else layers * layer
    return rows * tokens * kept


def _size(config: dict[str, Any], *names: str) -> int:
    """A size by any of its names; that of a large model where the configuration has none of them."""
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    return found if found is not None else 4096 if "hidden" in names[0] else 32


def measure_steps(compute: Callable[[list[int]], None], items: Sequence[Example], batches: list[list[int]]) -> float:
    """Compute the largest batch, for its memory, then time one of median size -> estimated seconds of all batches."""

    def tokens(members: list[int]) -> int:
        """Of all columns, padding included."""
        columns = zip(*(items[index].columns for index in members), strict=False)
        return len(members) * sum(max(map(len, column)) for column in columns)

    by_size = sorted(batches, key=tokens)
    compute(by_size[-1])
    median, started = by_size[len(by_size) // 2], time.monotonic()
    compute(median)
    return (time.monotonic() - started) * sum(map(tokens, batches)) / tokens(median)


def measured_bytes(model: torch.nn.Module, before: int) -> int:
    """The memory of a training, after `measure_steps`. before: what the process had resident before the model."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    device = next(model.parameters()).device
    if device.type == "cuda":
        return int((torch.cuda.max_memory_reserved(device) + trained * STATE_BYTES) * MARGIN)
    at_the_end = sum(weight.numel() for weight in model.parameters()) * WRITTEN_BYTES
    peak = peak_resident_bytes() - before
    return int(max(peak + trained * STATE_BYTES, at_the_end) * MARGIN)
