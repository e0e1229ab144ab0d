"""A model built on torch's meta device, and counted: one larger than its weights is refused before it is allocated.

Reads configurations, headers of weights and the tokeniser. Reads no weights.
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AutoConfig, AutoModel, AutoTokenizer

from ..catalogue import ModelSpec
from ..errors import ModelUnavailable
from ..generation.architecture import served_config
from ..generation.read_model import skeleton
from ..generation.tokenizer import GenerationTokenizer
from ..loading.memory import stored_shapes
from ..loading.quiet import quiet
from ..weights.model_files import is_static, module_folders, next_step
from ..weights.regular_files import read_regular

SLACK = 4
MORE_TENSORS, MORE_NUMBERS = 1_000, 10_000_000
"""A model may have four times what is stored, and so much more: what is tied is stored once, what is unused not at all,
such as a decoder whose encoder alone makes vectors."""


def count(spec: ModelSpec, folder: Path, files: Sequence[str]) -> None:
    """Read a model's configuration and tokeniser, and build it without memory for its weights.

    Raises ModelUnavailable where it is larger than its weights, or cannot be read.
    """
    if spec.kind == "embedding" and is_static(folder):
        return
    shapes = [shape for name in files for _, shape in stored_shapes(folder / name)]
    tensors = SLACK * len(shapes) + MORE_TENSORS
    numbers = SLACK * sum(map(math.prod, shapes)) + MORE_NUMBERS
    first = module_folders(spec, folder)[0]
    if (layers := _most_layers(json.loads(read_regular(first / "config.json")))) > tensors:
        raise ModelUnavailable(
            spec.id, f"its config.json tells of {layers} layers, and there are {len(shapes)} weights"
        )
    with _counting(spec, tensors, numbers), quiet():
        if spec.kind == "generation":
            skeleton(served_config(spec, folder))
            GenerationTokenizer.read(folder, spec.id)
        else:
            AutoTokenizer.from_pretrained(first, local_files_only=True, trust_remote_code=False)
            config = AutoConfig.from_pretrained(first, local_files_only=True, trust_remote_code=False)
            with torch.device("meta"):
                AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]


def _most_layers(stated: Any) -> int:
    """The highest of all numbers of layers in a configuration, whatever they are called there."""
    if isinstance(stated, list):
        return max(map(_most_layers, stated), default=0)
    if not isinstance(stated, dict):
        return 0
    numbers = (value for name, value in stated.items() if "layer" in str(name) and isinstance(value, int))
    return max((*numbers, *map(_most_layers, stated.values())), default=0)


@contextmanager
def _counting(spec: ModelSpec, tensors: int, numbers: int) -> Iterator[None]:
    """Raise as soon as more parameters come to be in this context."""

    def note(module: Any, name: str, parameter: torch.Tensor) -> None:
        nonlocal tensors, numbers
        tensors, numbers = tensors - 1, numbers - parameter.numel()
        if min(tensors, numbers) < 0:
            reason = f"its config.json describes a larger model than its weights are; {next_step(spec)}"
            raise ModelUnavailable(spec.id, reason)

    with register_module_parameter_registration_hook(note):
        yield
