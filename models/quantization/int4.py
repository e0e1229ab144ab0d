"""Linear layers with weights of four bits, in two layouts: that of torch's CPU kernel, for bfloat16, and a plain one
that any device can unpack."""

import torch
from torch import Tensor
from torch.nn.functional import linear

GROUP = 32
"""Weights of a row that share a scale and a zero point: the smallest group that torch's kernel supports."""

_ROWS = 16  # the kernel's blocks
_MIDDLE = 8  # the four-bit number whose weight is exactly `zero`
_BLOCK_WEIGHTS = 1 << 24  # quantised at a time, so that a large layer needs no whole copy in float32


def fits(out_features: int, in_features: int) -> bool:
    """Whether a layer of this shape can be quantised."""
    return in_features % GROUP == 0 and out_features % _ROWS == 0


def stored_bytes(out_features: int, in_features: int) -> int:
    """Size of a layer's weights: half a byte each, and two bfloat16 numbers per group."""
    weights = out_features * in_features
    return weights // 2 + weights // GROUP * 4


def int4_layer(layer: torch.nn.Linear, device: torch.device) -> torch.nn.Module:
    """The layer in four bits, in the layout for `device`; the caller moves it there."""
    numbers, scales_and_zeros = _quantized(layer.weight.detach())
    if device.type == "cpu" and layer.weight.dtype == torch.bfloat16:
        return KernelInt4Linear(numbers, scales_and_zeros, layer.bias)
    return PlainInt4Linear(numbers, scales_and_zeros, layer.bias)


class PlainInt4Linear(torch.nn.Module):
    """y = x W^T + b, with W unpacked in each call; for any device and dtype.

    numbers (out, in) uint8 below 16; scales_and_zeros (in / 32, out, 2) bfloat16; a weight is
    (number - 8) * scale + zero.
    """

    packed: Tensor
    scales_and_zeros: Tensor
    bias: torch.nn.Parameter | None

    def __init__(self, numbers: Tensor, scales_and_zeros: Tensor, bias: torch.nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = numbers.shape
        self.register_buffer("packed", self._pack(numbers))
        self.register_buffer("scales_and_zeros", scales_and_zeros)
        self.register_parameter("bias", bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., in) -> (..., out), in the same dtype."""
        return linear(hidden, self._unpacked(hidden.dtype), self.bias)

    extra_repr = torch.nn.Linear.extra_repr

    def _pack(self, numbers: Tensor) -> Tensor:
        """Two neighbours of a row per byte: (out, in) -> (out, in / 2)."""
        return numbers[:, ::2] | numbers[:, 1::2] << 4

    def _unpacked(self, dtype: torch.dtype) -> Tensor:
        numbers = torch.stack((self.packed & 15, self.packed >> 4), dim=-1)
        grouped = numbers.view(self.out_features, -1, GROUP).to(dtype)
        scales, zeros = self.scales_and_zeros.to(dtype).transpose(0, 1).chunk(2, dim=-1)
        weights = grouped.sub_(_MIDDLE).mul_(scales).add_(zeros)
        return weights.view(self.out_features, self.in_features)


class KernelInt4Linear(PlainInt4Linear):
    """The same with torch's kernel for bfloat16 on the CPU; it cannot be moved to another device."""

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (..., in) bfloat16 -> (..., out) bfloat16."""
        rows = hidden.reshape(-1, self.in_features).contiguous()
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scales_and_zeros)
        if self.bias is not None:
            out += self.bias
        return out.view(*hidden.shape[:-1], self.out_features)

    def _pack(self, numbers: Tensor) -> Tensor:
        packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers.int(), 1)
        return packed


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise weights (out, in), a block of rows at a time -> numbers, scales and zeros."""
    rows = max(1, _BLOCK_WEIGHTS // weight.shape[1])
    numbers, scales_and_zeros = zip(*map(_quantized_rows, torch.split(weight, rows)), strict=True)
    return torch.cat(numbers), torch.cat(scales_and_zeros, dim=1).contiguous()


def _quantized_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The zero point is a whole number, so that 0 is one of the values: that lost less than a free one (MiniLM)."""
    from torchao.quantization import quant_primitives as primitives

    block, bounds, asymmetric = (1, GROUP), (0, 15), primitives.MappingType.ASYMMETRIC
    exact = weight.float()
    chosen, zero_points = primitives.choose_qparams_affine(exact, asymmetric, block, torch.uint8, *bounds)
    scales, zero_points = (part.reshape(len(weight), -1) for part in (chosen.to(torch.bfloat16), zero_points))
    numbers = primitives.quantize_affine(exact, block, scales.float(), zero_points, torch.uint8, *bounds)
    zeros = (_MIDDLE - zero_points).float() * scales.float()
    return numbers, torch.stack((scales, zeros.to(torch.bfloat16)), dim=-1).transpose(0, 1)
