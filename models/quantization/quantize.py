"""Weight-only quantisation of a loaded torch model's linear layers. The self-test at load checks the result."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import assert_never

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..catalogue import Quantization
from ..errors import CannotQuantize
from . import int4, int8


def quantize(model: torch.nn.Module, quantization: Quantization, device: torch.device | None = None) -> int:
    """Quantise the linear layers of a model in place, one after the other -> how many of them stay as they are.

    device: where the model will run, by default where it is. Layers with a kernel there get its layout; other int8
    layers are torchao's. An output layer tied to the embedding becomes int8 together with it. `quantizable` says what
    stays. Raises CannotQuantize if that is everything, or torchao is missing.
    """
    total, layers, tied = len(linear_layers(model)), quantizable(model, quantization), tied_outputs(model)
    if not layers and not tied:
        raise CannotQuantize(quantization, "no linear layer of it has a fitting shape")
    device = device or next(model.parameters()).device
    with _torchao(quantization):
        for output, embedding in tied.items():
            _to_tied_int8(model, output, embedding, device)
        match quantization:
            case "int8":
                _to_int8(model, layers, device)
            case "int4":
                for name, layer in layers.items():
                    model.set_submodule(name, int4.int4_layer(layer, device))
            case _:
                assert_never(quantization)
    return total - len(layers) - len(tied)


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers, by name, without subclasses, whose parent modules read their weights."""
    return {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}


def unshared_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers, by name, that share their weights with no other module, which would keep the old weights."""
    holders = _holders(model)
    return {name: layer for name, layer in linear_layers(model).items() if len(holders[id(layer.weight)]) == 1}


def quantizable(model: torch.nn.Module, quantization: Quantization) -> dict[str, torch.nn.Linear]:
    """The linear layers, by name, that can be quantised alone; for int4 only those of a fitting shape."""
    return {
        name: layer
        for name, layer in unshared_layers(model).items()
        if quantization == "int8" or int4.fits(layer.out_features, layer.in_features)
    }


def unquantizable(model: torch.nn.Module, quantization: Quantization) -> tuple[int, float]:
    """The matrices that `quantize` would leave as they are: how many, and their share of all matrices' weights.

    Untied embeddings do not count; layers of any kind do.
    """
    done = {id(layer.weight) for layer in quantizable(model, quantization).values()}
    done |= {id(model.get_submodule(output).weight) for output in tied_outputs(model)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [held for held in model.parameters() if held.dim() > 1 and id(held) not in embeddings - done]
    left = [held.numel() for held in matrices if id(held) not in done]
    return len(left), sum(left) / max(1, sum(held.numel() for held in matrices))


def tied_outputs(model: torch.nn.Module) -> dict[str, str]:
    """The names of output layers that share their weights with an embedding alone -> the embedding's name."""
    modules, pairs = dict(model.named_modules()), {}
    for names in _holders(model).values():
        by_type = {type(modules[name]): name for name in names}
        if len(names) == 2 and by_type.keys() == {torch.nn.Linear, torch.nn.Embedding}:
            pairs[by_type[torch.nn.Linear]] = by_type[torch.nn.Embedding]
    return pairs


def stored_bytes(layer: torch.nn.Linear, quantization: Quantization) -> int:
    """Future size of a quantisable layer's weights, without its bias; torchao's take three bytes more per row."""
    stored = int4.stored_bytes if quantization == "int4" else int8.stored_bytes
    return stored(layer.out_features, layer.in_features)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of the storages behind all parameters and buffers; shared ones count once."""
    held = (*model.parameters(), *model.buffers())
    return sum(dict(_storage(part) for tensor in held for part in _parts(tensor)).values())


def _storage(tensor: Tensor) -> tuple[int, int]:
    if tensor.is_mkldnn:  # which neither exposes nor shares it
        return id(tensor), tensor.nbytes
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors inside a tensor."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _holders(model: torch.nn.Module) -> defaultdict[int, list[str]]:
    """Parameter id -> names of the modules that hold it."""
    holders: defaultdict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders[id(parameter)].append(name.rpartition(".")[0])
    return holders


def _to_tied_int8(model: torch.nn.Module, output: str, embedding: str, device: torch.device) -> None:
    layer = model.get_submodule(output)
    assert isinstance(layer, torch.nn.Linear)
    matrix = int8.int8_matrix(layer.weight, device)
    model.set_submodule(output, int8.Int8Linear(matrix, layer.bias))
    model.set_submodule(embedding, int8.Int8Embedding(matrix, layer.weight.dtype))


def _to_int8(model: torch.nn.Module, layers: Mapping[str, torch.nn.Linear], device: torch.device) -> None:
    own = {name: layer for name, layer in layers.items() if int8.has_kernel(layer.weight, device)}
    others = layers.keys() - own.keys()
    if others:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        config = Int8WeightOnlyConfig(set_inductor_config=False)  # it would change settings of the whole process
        quantize_(model, config, filter_fn=lambda _, name: name in others)
    for name, layer in own.items():
        model.set_submodule(name, int8.Int8Linear(int8.int8_matrix(layer.weight, device), layer.bias))


@contextmanager
def _torchao(quantization: Quantization) -> Iterator[None]:
    """Use torchao without its warnings. Raises CannotQuantize if it cannot be imported."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise CannotQuantize(quantization, f"torchao cannot be imported ({error}); install it") from error
