"""Matrices with weights of eight bits, multiplied plainly on any device, or with kernels for bfloat16 on the CPU."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

LARGEST = 127
FEW_ROWS = 12
"""Most rows for which the kernel is fastest, on one core with AVX-512, for matrices of 768 x 768 to 2048 x 5632."""

_BLOCK = 16  # the kernel reads past the end of other rows
_BLOCK_WEIGHTS = 1 << 22
"""Weights converted to another dtype at a time; the allocator keeps blocks of this size."""


@dataclass(slots=True)
class KernelRows:
    """How many rows of the next products use the kernel: the first `first`; None: all if they are few, else none.

    Kernel and plain product round differently, so the choice for a row must not depend on its neighbours in a batch.
    """

    first: int | None = None


def shared_rows(model: torch.nn.Module) -> KernelRows:
    """Make all matrices of a model share a KernelRows, to be set before each pass."""
    rows = KernelRows()
    for module in model.modules():
        if isinstance(module, KernelInt8Matrix):
            module.kernel_rows = rows
    return rows


def stored_bytes(out_features: int, in_features: int) -> int:
    """Size of a matrix: a byte per weight, and a bfloat16 scale per row."""
    return out_features * in_features + 2 * out_features


def has_kernel(weight: Tensor, device: torch.device) -> bool:
    """Whether the kernels support weights (out, in) on `device`."""
    return device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.shape[1] % _BLOCK == 0


def int8_matrix(weight: Tensor, device: torch.device) -> "Int8Matrix":
    """Weights (out, in) in eight bits, in the fastest form for `device`; the caller moves them there."""
    kind = KernelInt8Matrix if has_kernel(weight, device) else Int8Matrix
    return kind(*_quantized(weight.detach()))


class Int8Matrix(torch.nn.Module):
    """numbers (out, in) int8, scales (out,) bfloat16; a weight is number * scale. For any device and dtype."""

    numbers: Tensor
    scales: Tensor

    def __init__(self, numbers: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = numbers.shape
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", scales)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., in) -> hidden W^T (..., out), in the same dtype."""
        return linear(hidden, self.numbers.to(hidden.dtype) * self.scales.to(hidden.dtype)[:, None])

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights of some rows: ids (...) -> (..., in)."""
        return self.numbers[ids].to(dtype) * self.scales[ids].to(dtype)[..., None]


class KernelInt8Matrix(Int8Matrix):
    """The same for bfloat16 on the CPU, with only a part of the weights converted at a time."""

    def __init__(self, numbers: Tensor, scales: Tensor) -> None:
        super().__init__(numbers, scales)
        self.kernel_rows = KernelRows()

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., in) bfloat16 -> hidden W^T (..., out) bfloat16."""
        rows = hidden.reshape(-1, self.in_features).contiguous()
        first = self.kernel_rows.first
        if first is None:
            first = len(rows) if len(rows) <= FEW_ROWS else 0
        parts = []
        if first:
            parts.append(torch.ops.aten._weight_int8pack_mm(rows[:first], self.numbers, self.scales))
        if first < len(rows) or not parts:
            parts.append(self._in_bfloat16(rows[first:]))
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.view(*hidden.shape[:-1], self.out_features)

    def _in_bfloat16(self, rows: Tensor) -> Tensor:
        """The numbers are exact in bfloat16; the scales are applied to the product."""
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

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., in) -> (..., out), in the same dtype."""
        out: Tensor = self.matrix(hidden)
        if self.bias is not None:
            out += self.bias
        return out

    extra_repr = torch.nn.Linear.extra_repr


class Int8Embedding(torch.nn.Module):
    """Rows of a matrix in `dtype`; an output layer may share the matrix."""

    def __init__(self, matrix: Int8Matrix, dtype: torch.dtype) -> None:
        super().__init__()
        self.matrix = matrix
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> (..., in)."""
        return self.matrix.rows(ids, self.dtype)


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise weights (out, in), a block of rows at a time -> numbers, scales."""
    blocks = torch.split(weight, max(1, _BLOCK_WEIGHTS // weight.shape[1]))
    numbers, scales = zip(*map(_quantized_rows, blocks), strict=True)
    return torch.cat(numbers), torch.cat(scales)


def _quantized_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The scales are rounded first, so that the numbers compensate for it."""
    exact = weight.float()
    scales = (exact.abs().amax(1) / LARGEST).clamp_(min=1e-30).to(torch.bfloat16)
    numbers = (exact / scales.float()[:, None]).round_().clamp_(-LARGEST, LARGEST)
    return numbers.to(torch.int8), scales
