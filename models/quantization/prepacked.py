"""Linear layers whose weights lie as oneDNN multiplies them: laid out once, instead of in each product.

Owns which layers are, and on which processors. The numbers are the same, and as many. Knows no model.
"""

import platform

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .quantize import unshared_layers

ROWS = 16
"""The number of rows that the layout is chosen for. Measured on two cores with AVX-512, with matrices larger than the
caches: for 1 to 64 rows a product took 0.6 to 0.85 times as long in bfloat16 and 0.2 to 0.45 times in float32."""
_X86 = ("x86_64", "amd64")


class PrepackedLinear(torch.nn.Module):
    """y = x W^T + b, for the CPU; it cannot be moved elsewhere."""

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

    def extra_repr(self) -> str:
        """What printing the model says of this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def prepack(model: torch.nn.Module) -> None:
    """Lay out the linear layers of a model on the CPU in place, one after the other, where this processor can."""
    for name, layer in unshared_layers(model).items():
        if _can(layer.weight):
            model.set_submodule(name, PrepackedLinear(layer))


def _can(weight: torch.Tensor) -> bool:
    if platform.machine().lower() not in _X86 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if weight.device.type != "cpu" or is_traceable_wrapper_subclass(weight):  # the latter is quantised
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
