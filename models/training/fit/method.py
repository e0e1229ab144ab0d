"""How a model is trained here: device, precision, all weights or adapters, and the loss.

Chosen from the headers of the weights.
"""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    TripletDistanceMetric,
    TripletLoss,
)
from torch.nn.functional import cosine_similarity

from ...catalogue import ModelSpec
from ...encoders.modules import read_sentence_transformer, text_transformer
from ...loading.device import DeviceName, pick_device, pick_dtype
from ...loading.memory import stored_shapes
from ...weights import model_files
from ..run import TrainingOptions

LARGE = 200_000_000
"""Parameters past which adapters are trained, and activations are recomputed instead of kept."""
TRIPLET_MARGIN = 0.2
"""In cosine, by which the positive must be nearer than the negative."""
MIN_DIMENSIONS = 64
"""The shortest vectors of the Matryoshka loss, unless the entry says otherwise."""


@dataclass(frozen=True, slots=True)
class Method:
    """lora: adapters are trained beside frozen weights. checkpointing: activations are recomputed, not kept."""

    device: torch.device
    bf16: bool
    lora: bool
    checkpointing: bool

    @property
    def base_dtype(self) -> torch.dtype:
        """The dtype of the weights in memory: float32 if they are trained, else that of the computation."""
        return torch.bfloat16 if self.lora and self.bf16 else torch.float32


def choose_method(entry: ModelSpec, base: Path, options: TrainingOptions, device: DeviceName) -> Method:
    """Unless the options say, adapters for a large model, else all weights.

    Raises ModelError.
    """
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
    """Load the model of a folder on the CPU: its transformer in `dtype`, and what is trained in float32.

    Without dropout: one or two epochs do not overfit, and it takes a third of the time on a CPU. Raises
    ModelUnavailable.
    """
    model = read_sentence_transformer(entry, base, dtype)
    transformer = text_transformer(entry, model)
    for module in model.modules():
        for name in ("p", "attention_dropout"):  # of torch's own module, and of an attention layer
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if method.lora:
        add_adapters(model, transformer.auto_model, options)
    if method.checkpointing:
        transformer.auto_model.activation_checkpointing_enable({"use_reentrant": False})
    transformer.register_forward_hook(_in_float32)
    return model


def add_adapters(model: SentenceTransformer, transformer: Any, options: TrainingOptions) -> None:
    """Add adapters (Hu et al., 2021) of rank `lora_rank` to all linear layers of a transformer; freeze the rest."""
    torch.manual_seed(options.seed)
    model.requires_grad_(False)
    rank = options.lora_rank
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated name of transformers
        get_peft_model(transformer, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))


def merge_adapters(transformer: Any) -> None:
    """Merge adapters into the weights beside them, and remove them. Does nothing without adapters."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(transformer.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(transformer.get_submodule(parent), child, layer.get_base_layer())


def trained_weights(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """The trained weights by name, on the CPU."""
    return {
        name: weight.detach().cpu().contiguous() for name, weight in model.named_parameters() if weight.requires_grad
    }


def restore_weights(model: SentenceTransformer, trained: dict[str, torch.Tensor]) -> None:
    """Restore what `trained_weights` returned, into a model of the same method. Raises KeyError if one is missing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(trained[name])


def lowest_bf16_cosine(model: SentenceTransformer, features: dict[str, Any]) -> float:
    """The lowest cosine between a vector in bf16 and in float32, of a model in float32 on the CPU."""
    with torch.inference_mode():
        exact = model(dict(features))["sentence_embedding"]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(dict(features))["sentence_embedding"]
    return float(cosine_similarity(exact, rounded.float()).min())


def _in_float32(transformer: Any, _: Any, features: dict[str, Any]) -> dict[str, Any]:
    """Let the modules after the transformer compute in float32, as in serving."""
    output = transformer.module_output_name
    return {**features, output: features[output].float()}


def make_loss(
    model: SentenceTransformer, options: TrainingOptions, micro_batch: int, lengths: tuple[int, ...] = ()
) -> torch.nn.Module:
    """A loss over the columns of a batch, anchor first. lengths: of the vectors, with the Matryoshka loss.

    InfoNCE (van den Oord et al., 2018) with the batch's other documents and all negatives, at a temperature of 0.05.
    A micro-batch smaller than a batch gives the same value in parts (Gao et al., 2021, gradient cache).
    """
    loss: torch.nn.Module
    if options.loss == "triplet":
        loss = TripletLoss(model, distance_metric=TripletDistanceMetric.COSINE, triplet_margin=TRIPLET_MARGIN)
    elif micro_batch < options.batch_size:
        loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=micro_batch)
    else:
        loss = MultipleNegativesRankingLoss(model)
    return MatryoshkaLoss(model, loss, lengths) if options.matryoshka else loss


def vector_lengths(spec: ModelSpec, dimensions: int) -> tuple[int, ...]:
    """The vector lengths of the Matryoshka loss, longest first: the entry's, else halves down to MIN_DIMENSIONS.

    The full length is always one of them.
    """
    halves = [dimensions]
    while halves[-1] >= 2 * MIN_DIMENSIONS:
        halves.append(halves[-1] // 2)
    return tuple(sorted({dimensions, *(spec.matryoshka or halves)}, reverse=True))
