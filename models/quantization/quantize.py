"""Weight-only quantisation of a loaded torch model: its linear layers as int8 or int4, the rest as it was.

Owns which layers are quantised, and into how many bytes. Does not judge what that costs in quality: the self-test at
load does.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..catalogue import Quantization
from ..errors import CannotQuantize
from . import int4, int8


def quantize(model: torch.nn.Module, how: Quantization, device: torch.device | None = None) -> int:
    """Quantise the linear layers of a model in place, one after the other -> how many of them stay as they are.

    device: where the model is to run, by default where it lies; what has a kernel there is laid out for it, and int8
    is otherwise torchao's. An output layer that shares its weights with the embedding becomes int8 with it. See
    `quantizable` for what stays. Raises CannotQuantize where that is everything, or without torchao.
    """
    total, layers, tied = len(linear_layers(model)), quantizable(model, how), tied_outputs(model)
    if not layers and not tied:
        raise CannotQuantize(how, "no linear layer of it has a fitting shape")
    device = device or next(model.parameters()).device
    with _torchao(how):
        for output, embedding in tied.items():
            _to_tied_int8(model, output, embedding, device)
        if how == "int8":
            _to_int8(model, layers, device)
        else:
            _to_int4(model, tuple(layers), device)
    return total - len(layers) - len(tied)


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers, by name. Subclasses are none: the modules around them read their weights."""
    return {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}


def unshared_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers that share their weights with no other module, by name: of those, another form of the weights
    would only be a second copy."""
    holders = _holders(model)
    return {name: layer for name, layer in linear_layers(model).items() if len(holders[id(layer.weight)]) == 1}


def quantizable(model: torch.nn.Module, how: Quantization) -> dict[str, torch.nn.Linear]:
    """The linear layers that can be quantised by themselves, by name: in int4 not those whose shape does not fit."""
    return {
        name: layer
        for name, layer in unshared_layers(model).items()
        if how == "int8" or int4.fits(layer.out_features, layer.in_features)
    }


def left_alone(model: torch.nn.Module, how: Quantization) -> tuple[int, float]:
    """The matrices that `quantize` would leave as they are: how many, and their share of all matrices' weights.

    Embeddings do not count, and layers of other kinds than torch's linear ones do.
    """
    done = {id(layer.weight) for layer in quantizable(model, how).values()}
    done |= {id(model.get_submodule(output).weight) for output in tied_outputs(model)}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = [held for held in model.parameters() if held.dim() > 1 and id(held) not in embeddings - done]
    left = [held.numel() for held in matrices if id(held) not in done]
    return len(left), sum(left) / max(1, sum(held.numel() for held in matrices))


def tied_outputs(model: torch.nn.Module) -> dict[str, str]:
    """The names of output layers, each with that of the embedding whose weights it shares with nobody else."""
    modules, pairs = dict(model.named_modules()), {}
    for names in _holders(model).values():
        by_type = {type(modules[name]): name for name in names}
        if len(names) == 2 and by_type.keys() == {torch.nn.Linear, torch.nn.Embedding}:
            pairs[by_type[torch.nn.Linear]] = by_type[torch.nn.Embedding]
    return pairs


def stored_bytes(layer: torch.nn.Linear, how: Quantization) -> int:
    """What the weights of a quantisable layer will take, without its bias; torchao's have three bytes a row more."""
    stored = int4.stored_bytes if how == "int4" else int8.stored_bytes
    return stored(layer.out_features, layer.in_features)


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of the storages behind all parameters and buffers; shared ones count once."""
    held = (*model.parameters(), *model.buffers())
    return sum(dict(_storage(part) for tensor in held for part in _parts(tensor)).values())


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    """A name and the bytes of what is behind a tensor."""
    if tensor.is_mkldnn:  # which does not show it, and does not share it
        return id(tensor), tensor.nbytes
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a quantised one is made of; a plain one itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _holders(model: torch.nn.Module) -> defaultdict[int, list[str]]:
    """For each parameter, by its id, the names of the modules that have it."""
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
    own = [name for name, layer in layers.items() if int8.has_kernel(layer.weight, device)]
    others = layers.keys() - own
    if others:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_

        config = Int8WeightOnlyConfig(set_inductor_config=False)  # the process's settings are not ours
        quantize_(model, config, filter_fn=lambda _, name: name in others)
    for name in own:
        layer = model.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        model.set_submodule(name, int8.Int8Linear(int8.int8_matrix(layer.weight, device), layer.bias))


def _to_int4(model: torch.nn.Module, names: tuple[str, ...], device: torch.device) -> None:
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        model.set_submodule(name, int4.int4_layer(layer, device))


@contextmanager
def _torchao(how: Quantization) -> Iterator[None]:
    """Use torchao without its warnings. Raises CannotQuantize where it cannot be imported."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise CannotQuantize(how, f"torchao cannot be imported ({error}); install it") from error
