"""How many bytes a model takes at each precision, from its configuration alone.

The architecture is built without weights, on torch's meta device. No network is asked.
"""

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ..catalogue import ModelSpec, Quantization, shipped_config
from ..errors import ModelUnavailable, UnknownArchitecture, cause_text
from ..generation.architecture import kv_shape, skeleton
from ..quantization.quantize import linear_layers, quantizable, stored_bytes, tied_outputs
from ..weights import hub
from ..weights.model_files import is_static, next_step, require_whole, weight_files
from ..weights.regular_files import read_regular
from .memory import stored_shapes
from .reading import READ_LOCK

Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8", "int4"]

_PLAIN: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2}
_QUANTIZED: tuple[Quantization, ...] = get_args(Quantization)


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of a model. sizes: precision -> bytes of its weights, for every precision that it can be served at.

    In int8 and int4 the layers that are not quantised are in bf16. kv_bytes_per_token: keys and values of one token, in
    bf16; 0 for an embedding model.
    """

    model: str
    parameters: int
    sizes: Mapping[Precision, int]
    kv_bytes_per_token: int = 0


def footprint(spec: ModelSpec) -> Footprint:
    """The memory of an entry's model. Raises UnknownArchitecture where its configuration is not here, or not known."""
    if spec.kind == "embedding" and (folder := _static_folder(spec)):
        return _of_table(spec, folder)
    raw = model_config(spec)
    try:
        return _measured(spec, raw)
    except Exception as error:  # a foreign configuration can make the library raise anything
        raise UnknownArchitecture(spec.id, cause_text(error)) from error


def _static_folder(spec: ModelSpec) -> Path | None:
    """The folder of a model that is a table of token vectors, if it is one and on this machine."""
    with suppress(ModelUnavailable):
        folder = hub.locate(spec, download=False)
        return folder if is_static(folder) else None
    return None


def _of_table(spec: ModelSpec, folder: Path) -> Footprint:
    try:
        files = weight_files(spec, folder)
        require_whole(spec, folder, files)
    except ModelUnavailable as error:
        raise UnknownArchitecture(spec.id, error.reason) from error
    parameters = sum(math.prod(shape) for name in files for _, shape in stored_shapes(folder / name))
    return Footprint(spec.id, parameters, {precision: parameters * width for precision, width in _PLAIN.items()})


def _measured(spec: ModelSpec, raw: Mapping[str, Any]) -> Footprint:
    config = _config(raw)
    with READ_LOCK:  # a worker may load another model meanwhile
        model = skeleton(config) if spec.kind == "generation" else encoder_skeleton(config)
    parameters = sum(parameter.numel() for parameter in model.parameters()) + _adapter_parameters(model, raw)
    if spec.served_by == "onnx":
        sizes: dict[Precision, int] = {dtype: parameters * _PLAIN[dtype] for dtype in spec.onnx_files}
    else:
        sizes = _sizes(model, parameters)
    kv_bytes = kv_shape(config, torch.bfloat16).token_bytes if spec.kind == "generation" else 0
    return Footprint(spec.id, parameters, sizes, kv_bytes)


def model_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration in the model's folder where that is on this machine, else the one that ships with mlbus.

    Raises UnknownArchitecture.
    """
    try:
        return folder_config(hub.locate(spec, download=False))
    except ModelUnavailable as error:
        reason = error.reason
    except FileNotFoundError as error:
        reason = f"there is no {error.filename}; {next_step(spec)}"
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = f"its configuration cannot be read ({cause_text(error)}); {next_step(spec)}"
        raise UnknownArchitecture(spec.id, reason) from error
    if config := shipped_config(spec):
        return config
    raise UnknownArchitecture(spec.id, reason)


def folder_config(folder: Path) -> dict[str, Any]:
    """The configuration of the first module, which is the transformer, or of the folder itself.

    Raises OSError, ValueError, LookupError, TypeError where it cannot be read.
    """
    modules = folder / "modules.json"
    first = json.loads(read_regular(modules))[0]["path"] if modules.is_file() else ""
    config = json.loads(read_regular(folder / first / "config.json"))
    if not isinstance(config, dict):
        raise TypeError("config.json is not a JSON object")
    return config


def _config(raw: Mapping[str, Any]) -> PretrainedConfig:
    fields = {name: value for name, value in raw.items() if name not in ("auto_map", "model_type")}
    kind = raw["model_type"]
    if kind == "xlm-roberta" and raw.get("position_embedding_type") == "rotary":
        kind = "jina_embeddings_v3"  # the repository's own code, by the name that transformers gave it
    return AutoConfig.for_model(kind, **fields)


def encoder_skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """An encoder's architecture with shapes and no weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
    return model


def _sizes(model: torch.nn.Module, parameters: int) -> dict[Precision, int]:
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    sizes = {precision: parameters * width + buffers for precision, width in _PLAIN.items()}
    layers = linear_layers(model)
    tied = [layers[name] for name in tied_outputs(model)]
    for how in _QUANTIZED:
        stored = [(layer, stored_bytes(layer, how)) for layer in quantizable(model, how).values()]
        stored += [(layer, stored_bytes(layer, "int8")) for layer in tied]
        sizes[how] = sizes["bf16"] - sum(layer.weight.numel() * _PLAIN["bf16"] - size for layer, size in stored)
    return sizes


def _adapter_parameters(model: torch.nn.Module, raw: Mapping[str, Any]) -> int:
    """Weights of the low-rank adapters in a configuration: two thin matrices for each linear and embedding layer."""
    rank, adapters = raw.get("lora_rank"), raw.get("lora_adaptations")
    if not rank or not adapters:
        return 0
    held = (torch.nn.Linear, torch.nn.Embedding)
    widths = sum(sum(module.weight.shape) for module in model.modules() if isinstance(module, held))
    return len(adapters) * int(rank) * widths
