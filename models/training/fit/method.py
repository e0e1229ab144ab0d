"""How a model is trained here: on which device, in which precision, all weights or adapters.

Decides from the headers of the weights alone, and makes the model ready for it. Knows no data and no loop.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from torch.nn.functional import cosine_similarity

from ...catalogue import ModelSpec
from ...encoders.modules import read_sentence_transformer, text_transformer
from ...loading.device import DeviceName, pick_device, pick_dtype
from ...loading.memory import stored_shapes
from ...weights import model_files
from ..options import TrainingOptions

LARGE = 200_000_000
"""Parameters past which adapters are trained, and activations are computed again instead of kept."""


@dataclass(frozen=True, slots=True)
class Method:
    """lora: adapters are trained beside frozen weights. checkpointing: of activations, which are computed twice."""

    device: torch.device
    bf16: bool
    lora: bool
    checkpointing: bool

    @property
    def base_dtype(self) -> torch.dtype:
        """Of the weights in memory: what is trained is in float32, frozen weights in what is computed in."""
        return torch.bfloat16 if self.lora and self.bf16 else torch.float32


def choose_method(entry: ModelSpec, base: Path, options: TrainingOptions, device: DeviceName) -> Method:
    """Raises ModelError."""
    where = pick_device(device)
    large = sum(math.prod(shape) for _, shape in stored_tensors(entry, base)) > LARGE
    lora = options.method == "lora" or (options.method == "auto" and large)
    return Method(where, pick_dtype(entry.dtype, where) == "bf16", lora, large)


def stored_tensors(entry: ModelSpec, base: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes of all weights in a folder. Raises ModelUnavailable."""
    return [tensor for name in model_files.weight_files(entry, base) for tensor in stored_shapes(base / name)]


def trainable_model(
    entry: ModelSpec, base: Path, options: TrainingOptions, method: Method, dtype: torch.dtype
) -> SentenceTransformer:
    """The model of a folder, its transformer in `dtype`, in float32 what is trained; on the CPU.

    Without dropout: a pass or two over the data learn nothing by heart, and it takes a third of the time on a CPU.
    Raises ModelUnavailable.
    """
    model = read_sentence_transformer(entry, base, dtype)
    transformer = text_transformer(entry, model)
    for module in model.modules():
        for name in ("p", "attention_dropout"):  # that of torch's own module, and a number where attention asks for one
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if method.lora:
        add_adapters(model, transformer.auto_model, options)
    if method.checkpointing:
        transformer.auto_model.activation_checkpointing_enable({"use_reentrant": False})
    transformer.register_forward_hook(_in_float32)
    return model


def add_adapters(model: SentenceTransformer, transformer: Any, options: TrainingOptions) -> None:
    """Put adapters (Hu et al., 2021) of rank `lora_rank` beside all linear layers of a transformer; freeze the rest."""
    torch.manual_seed(options.seed)
    model.requires_grad_(False)
    rank = options.lora_rank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is to go
        get_peft_model(transformer, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def merge_adapters(transformer: Any) -> None:
    """Add what adapters learned to the weights beside them, and take the adapters out; without any nothing happens."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(transformer.get_submodule(parent), child, layer.get_base_layer())


def trained_weights(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """By name, what is trained, on the CPU."""
    return {
        name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters() if weight.requires_grad
    }


def put_weights(model: SentenceTransformer, trained: dict[str, torch.Tensor]) -> None:
    """Give a model of the same method what `trained_weights` gave. Raises KeyError where one is missing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(trained[name])


def lowest_bf16_cosine(model: SentenceTransformer, features: dict[str, Any]) -> float:
    """How near vectors in bf16 come to those in float32, of a model in float32 on the CPU."""
    with torch.inference_mode():
        exact = model(dict(features))["sentence_embedding"]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(dict(features))["sentence_embedding"]
    return float(cosine_similarity(exact, rounded.float()).min())


def _in_float32(transformer: Any, _: Any, features: dict[str, Any]) -> dict[str, Any]:
    """What follows the transformer computes in float32, as when it serves."""
    output = transformer.module_output_name
    return {**features, output: features[output].float()}
