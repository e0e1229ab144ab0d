"""Counter-based random numbers: each is a function of a seed, a position in the text and a token id.

A completion is therefore the same in any batch, on any worker, and after preemption. The function is SplitMix64
(Steele, Lea and Flood, 2014): seed and position give the key where its sequence starts, the token id is the counter.
Integers wrap around alike on every device.
"""

import torch
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15
_SHIFTS = 30, 27
_FACTORS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 31
_WORD = 2**64 - 1
_LARGEST = 1 - 2**-24
"""The float32 next to 1."""


def key(seed: int, position: int) -> int:
    """The key of one position of one text: 64 bits, as a signed integer for an int64 tensor.

    seed: unsigned, 64 bits. position: tokens before it.
    """
    return _signed(_mixed(_mixed(seed + _STEP) + (position + 1) * _STEP))


def uniform(keys: Tensor, ids: Tensor) -> Tensor:
    """A number of 31 random bits for each token, never 0 or 1.

    keys (R, 1) and ids (R, N) or (1, N), both int64 -> (R, N) float32. Small numbers keep all their bits, those near 1
    are rounded to 24.
    """
    word = keys + (ids + 1) * _signed(_STEP)
    scratch = torch.empty_like(word)  # fresh memory costs more than the arithmetic
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        word ^= _shifted(word, shift, scratch)
        word *= _signed(factor)
    # SplitMix64 ends with one more fold by 31, which leaves the bits used here as they are.
    return _shifted(word, 64 - _BITS, scratch).float().add_(0.5).mul_(2.0**-_BITS).clamp_(max=_LARGEST)


def exponential(keys: Tensor, ids: Tensor) -> Tensor:
    """Like `uniform`, but exponentially distributed with mean 1.

    Uses log1p of small uniform numbers, not log of numbers near 1: precise near 0, which decides an exponential race.
    """
    return uniform(keys, ids).neg_().log1p_().neg_()


def _shifted(word: Tensor, bits: int, out: Tensor) -> Tensor:
    """Logical right shift; int64's own would copy the sign."""
    return torch.bitwise_right_shift(word, bits, out=out).bitwise_and_((1 << (64 - bits)) - 1)


def _mixed(word: int) -> int:
    word &= _WORD
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=True):
        word = ((word ^ (word >> shift)) * factor) & _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
