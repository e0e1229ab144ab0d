"""What a training will take, and whether a model can be trained at all, from the files of its weights.

Reads headers and configurations; builds no model and reads no weights.
"""

import json
import math
from pathlib import Path
from typing import Any

from ...catalogue import ModelSpec
from ...errors import ModelUnavailable
from ...weights import model_files
from ..errors import CannotTrain
from ..options import TrainingOptions
from .method import Method, choose_method, stored_tensors
from .texts import MAX_TOKENS

STATES = 4
"""Copies of what is trained, in float32: the weights, their gradients and the optimiser's two averages."""
KEPT_WIDTHS = 12
"""What a layer keeps of each token for the way back, in hidden sizes beside its inner ones."""
MIXED_BYTES = 3
"""Of a number that is kept where matrices are multiplied in bf16: norms and activation functions keep float32."""
MARGIN = 1.25
FIXED_BYTES = 256 << 20
"""For what the libraries allocate when they first compute, and for vectors and token ids."""


def check_trainable(entry: ModelSpec, base: Path) -> None:
    """Whether the model of an entry can be trained from the weights in a folder. Raises CannotTrain."""
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
    """The device on which a model would be trained, and about how many bytes that takes there.

    Raises CannotTrain, ModelError.
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
        total = max(total, parameters * 4 * 2)  # the candidate, and the same again while it is written
    return str(method.device), int(total * MARGIN) + FIXED_BYTES


def _activation_bytes(entry: ModelSpec, base: Path, options: TrainingOptions, method: Method) -> int:
    config = _config(entry, base)
    hidden, layers, inner = (_size(config, *names) for names in _NAMES)
    tokens = min(options.max_tokens or MAX_TOKENS, entry.max_tokens or MAX_TOKENS)
    columns = 2 + max(options.hard_negatives, options.loss == "triplet")
    rows = min(options.micro_batch or options.batch_size, options.batch_size) * columns
    width = MIXED_BYTES if method.bf16 else 4
    layer = (KEPT_WIDTHS * hidden + 3 * inner) * width
    kept = layer + layers * hidden * width if method.checkpointing else layers * layer
    return rows * tokens * kept


_NAMES = (
    ("hidden_size", "dim", "d_model"),
    ("num_hidden_layers", "n_layers", "num_layers"),
    ("intermediate_size", "hidden_dim", "d_ff"),
)


def _config(entry: ModelSpec, base: Path) -> dict[str, Any]:
    """That of the first module, which is the transformer. Raises CannotTrain."""
    try:
        first = json.loads((base / "modules.json").read_bytes())[0]["path"]
        config: dict[str, Any] = json.loads((base / first / "config.json").read_bytes())
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CannotTrain(entry.id, f"the configuration in {base} cannot be read; use a complete copy") from error
    return config


def _size(config: dict[str, Any], *names: str) -> int:
    """A size by any of its names; where a configuration leaves it out, that of a large model."""
    found = next((config[name] for name in names if isinstance(config.get(name), int)), None)
    return found if found is not None else 4096 if "hidden" in names[0] else 32
