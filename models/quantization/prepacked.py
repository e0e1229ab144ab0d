"""Linear layers with weights in oneDNN's own layout, made once instead of in each product. Values and size stay."""

import platform

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .quantize import unshared_layers

ROWS = 16
"""Number of rows that the layout is optimised for. Measured on two cores with AVX-512, with matrices larger than the
caches: for 1 to 64 rows a product took 0.6 to 0.85 times as long in bfloat16 and 0.2 to 0.45 times in float32."""
_X86 = ("x86_64", "amd64")


class PrepackedLinear(torch.nn.Module):
    """y = x W^T + b on the CPU; it cannot be moved to another device."""

    packed: torch.Tensor
    bias: torch.nn.Parameter | None

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = layer.out_features, layer.in_features
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
        self.register_buffer("packed", packed, persistent=False)
        self.register_parameter("bias", layer.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., in) -> (..., out), in the same dtype."""
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self.packed, self.bias, "none", [], "")
        return out

    extra_repr = torch.nn.Linear.extra_repr


def prepack(model: torch.nn.Module) -> None:
    """Replace the linear layers of a model on the CPU, in place, one after the other, if the processor supports it."""
    for name, layer in unshared_layers(model).items():
        if _is_supported(layer.weight):
            model.set_submodule(name, PrepackedLinear(layer))


def _is_supported(weight: torch.Tensor) -> bool:
    if platform.machine().lower() not in _X86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.device.type != "cpu" or is_traceable_wrapper_subclass(weight):  # the latter: quantised
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
