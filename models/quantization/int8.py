"""Matrices with weights of eight bits: how they are chosen, stored, multiplied and looked up.

Owns two ways to multiply with the same numbers: a plain one for any device, and kernels for bfloat16 on the CPU. Knows
no model.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import linear

LARGEST = 127
FEW_ROWS = 12
"""Up to where the kernel is the fastest way, on one core with AVX-512, for matrices of 768 x 768 to 2048 x 5632."""

_BLOCK = 16  # the kernel reads past the end of other rows
_BLOCK_WEIGHTS = 1 << 22
"""Turned into another type at once: no more memory than that, and of a size that the allocator keeps."""


@dataclass(slots=True)
class KernelRows:
    """Which rows of the products to come go through the kernel: the first `first` of them, None: all if they are few.

    The two ways round otherwise, so what a row's way is must not depend on the rows beside it, where that matters.
    """

    first: int | None = None


def shared_rows(model: torch.nn.Module) -> KernelRows:
    """What all matrices of a model go by from now on, to be set before each pass."""
    rows = KernelRows()
    for module in model.modules():
        if isinstance(module, KernelInt8Matrix):
            module.by = rows
    return rows


def stored_bytes(out_features: int, in_features: int) -> int:
    """What a matrix takes: a byte for each weight, and a bfloat16 scale for each row."""
    return out_features * in_features + 2 * out_features


def has_kernel(weight: torch.Tensor, device: torch.device) -> bool:
    """Whether weights (out, in) can be multiplied by the kernels, once on `device`."""
    return device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.shape[1] % _BLOCK == 0


def int8_matrix(weight: torch.Tensor, device: torch.device) -> "Int8Matrix":
    """Weights (out, in) in eight bits, as they are best multiplied on `device`, on which they still have to be put."""
    kind = KernelInt8Matrix if has_kernel(weight, device) else Int8Matrix
    return kind(*_quantized(weight.detach()))


class Int8Matrix(torch.nn.Module):
    """numbers (out, in) int8, scales (out,) bfloat16; a weight is number * scale. For every device and dtype."""

    numbers: torch.Tensor
    scales: torch.Tensor

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = numbers.shape
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", scales)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., in) -> hidden W^T (..., out), in the same dtype."""
        return linear(hidden, self.numbers.to(hidden.dtype) * self.scales.to(hidden.dtype)[:, None])

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The weights of these rows: ids (...) -> (..., in)."""
        return self.numbers[ids].to(dtype) * self.scales[ids].to(dtype)[..., None]


class KernelInt8Matrix(Int8Matrix):
    """The same for bfloat16 on the CPU: never more than a part of the weights in another type."""

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__(numbers, scales)
        self.by = KernelRows()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., in) bfloat16 -> hidden W^T (..., out) bfloat16."""
        rows = hidden.reshape(-1, self.in_features).contiguous()
        first = self.by.first
        if first is None:
            first = len(rows) if len(rows) <= FEW_ROWS else 0
        parts = []
        if first:
            parts.append(torch.ops.aten._weight_int8pack_mm(rows[:first], self.numbers, self.scales))
        if first < len(rows) or not parts:
            parts.append(self._in_bfloat16(rows[first:]))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.view(*hidden.shape[:-1], self.out_features)

    def _in_bfloat16(self, rows: torch.Tensor) -> torch.Tensor:
        """The numbers are exact in bfloat16, and the scales come after the product."""
        blocks = torch.split(self.numbers, max(1, _BLOCK_WEIGHTS // self.in_features))
        parts = [linear(rows, block.to(rows.dtype)) for block in blocks]
        return torch.cat(parts, dim=1).mul_(self.scales)


class Int8Linear(torch.nn.Module):
    """y = x W^T + b."""

    bias: torch.nn.Parameter | None

    def __init__(self, matrix: Int8Matrix, bias: torch.nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.out_features, matrix.in_features
        self.matrix = matrix
        self.register_parameter("bias", bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (..., in) -> (..., out), in the same dtype."""
        out: torch.Tensor = self.matrix(hidden)
        if self.bias is not None:
            out += self.bias
        return out

    def extra_repr(self) -> str:
        """What printing the model says of this layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(torch.nn.Module):
    """Rows of a matrix, which may be an output layer's too, in `dtype`."""

    def __init__(self, matrix: Int8Matrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (...) -> (..., in)."""
        return self.matrix.rows(ids, self.dtype)


def _quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers and scales of weights (out, in), block of rows by block of rows."""
    blocks = torch.split(weight, max(1, _BLOCK_WEIGHTS // weight.shape[1]))
    numbers, scales = zip(*map(_quantized_rows, blocks), strict=True)
    return torch.cat(numbers), torch.cat(scales)


def _quantized_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales are rounded first, so that the numbers make up for it."""
    exact = weight.float()
    scales = (exact.abs().amax(1) / LARGEST).clamp_(min=1e-30).to(torch.bfloat16)
    numbers = (exact / scales.float()[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return numbers.to(torch.int8), scales
