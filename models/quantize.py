"""Weight-only quantisation of a loaded torch model: its linear layers as int8 or int4, the rest as it was.

Owns which layers are quantised, and into how many bytes. Does not judge what that costs in quality: the self-test at
load does.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from . import int4
from .catalogue import Quantization
from .errors import CannotQuantize

_INT8_ROW_BYTES = 5  # a float32 scale and an int8 zero point


def quantize(model: torch.nn.Module, how: Quantization, device: torch.device | None = None) -> int:
    """Quantise the linear layers of a model in place, one after the other -> how many of them stay as they are.

    device: where the model is to run, by default where it lies; int4 is laid out for it. See `quantizable` for what
    stays. Raises CannotQuantize where that is everything, or without torchao.
    """
    total, names = len(linear_layers(model)), tuple(quantizable(model, how))
    if not names:
        raise CannotQuantize(how, "no linear layer of it has a fitting shape")
    with _torchao(how):
        if how == "int8":
            _to_int8(model, frozenset(names))
        else:
            _to_int4(model, names, device)
    return total - len(names)


def linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The linear layers, by name. Subclasses are none: the modules around them read their weights."""
    return {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}


def quantizable(model: torch.nn.Module, how: Quantization) -> dict[str, torch.nn.Linear]:
    """The linear layers that can be quantised, by name.

    Not those that share their weights with another module, such as an output layer with the embedding: quantised,
    they would only be a second copy. In int4 not those whose shape does not fit either.
    """
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    return {
        name: layer
        for name, layer in linear_layers(model).items()
        if holders[id(layer.weight)] == 1 and (how == "int8" or int4.fits(layer.out_features, layer.in_features))
    }


def stored_bytes(layer: torch.nn.Linear, how: Quantization) -> int:
    """What the weights of a quantisable layer will take, without its bias."""
    if how == "int4":
        return int4.stored_bytes(layer.out_features, layer.in_features)
    return layer.out_features * layer.in_features + _INT8_ROW_BYTES * layer.out_features


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of the storages behind all parameters and buffers; shared ones count once."""
    held = (*model.parameters(), *model.buffers())
    storages = [part.untyped_storage() for tensor in held for part in _parts(tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The plain tensors that a quantised one is made of; a plain one itself."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _to_int8(model: torch.nn.Module, names: frozenset[str]) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    config = Int8WeightOnlyConfig(set_inductor_config=False)  # the process's settings are not ours
    quantize_(model, config, filter_fn=lambda _, name: name in names)


def _to_int4(model: torch.nn.Module, names: tuple[str, ...], device: torch.device | None) -> None:
    for name in names:
        layer = model.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        model.set_submodule(name, int4.int4_layer(layer, device or layer.weight.device))


@contextmanager
def _torchao(how: Quantization) -> Iterator[None]:
    """Use torchao without its warnings. Raises CannotQuantize where it cannot be imported."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            yield
        except ImportError as error:
            raise CannotQuantize(how, f"torchao cannot be imported ({error}); install it") from error
