"""Vectors made smaller, and back: half floats, int8 of a fixed range, one bit a value.

Arithmetic on arrays whose last axis is a vector; knows no message, no content type and no model.
"""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .names import EncodingFormat

FloatArray: TypeAlias = npt.NDArray[np.float32]
WireArray: TypeAlias = npt.NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "base64": np.dtype("<f4"),
    "array": np.dtype("<f4"),
    "int8": np.dtype("i1"),
    "binary": np.dtype("u1"),
}
UNIT_LENGTH_ONLY = ("int8", "binary")
"""Formats that keep no length."""

INT8_RANGE = 5.0
"""What int8's 127 stands for, in multiples of 1 / sqrt(D), the root mean square of a unit vector's values.

A smaller range clips large values, a larger one rounds all of them more. The lowest cosine to float32 over 400
docstrings and functions of Python's library, as all-MiniLM-L6-v2 embeds them (mean in brackets):

    range                 3                  4                  5                  6
    384 dimensions  0.9940 (0.99967)  0.9983 (0.99995)  0.99990 (0.99994)  0.99989 (0.99991)
    cut to 64       0.9907 (0.99988)  0.9998 (0.99996)  0.99992 (0.99994)  0.99988 (0.99991)
"""

_LARGEST_HALF = float(np.finfo(np.float16).max)


def values(encoding_format: EncodingFormat, dimensions: int) -> int:
    """How many values of its dtype a vector of D dimensions takes: D, or ceil(D / 8) bytes of bits."""
    return -(-dimensions // 8) if encoding_format == "binary" else dimensions


def encode(vectors: FloatArray, encoding_format: EncodingFormat) -> WireArray:
    """float32 (..., D) -> the format's dtype, (..., D), or (..., ceil(D / 8)) for binary.

    float32, base64, array: as they are. float16: rounded; what is too large becomes the largest half float.
    int8: round(127 * v * sqrt(D) / INT8_RANGE), clipped to -127..127; for vectors of unit length.
    binary: a bit a value, 1 where it is above 0, the first value in the highest bit of the first byte.
    """
    match encoding_format:
        case "float16":
            within: FloatArray = np.clip(vectors, -_LARGEST_HALF, _LARGEST_HALF)
            return within.astype(DTYPES["float16"])
        case "int8":
            steps: FloatArray = np.rint(vectors * np.float32(127 * np.sqrt(vectors.shape[-1]) / INT8_RANGE))
            return steps.clip(-127, 127).astype(DTYPES["int8"])
        case "binary":
            return np.packbits(vectors > 0, axis=-1)
        case _:
            return vectors.astype(DTYPES["float32"], copy=False)


def to_float32(vectors: WireArray, encoding_format: EncodingFormat, dimensions: int) -> FloatArray:
    """Vectors of any format -> float32 (..., D), as near to what was encoded as the format allows.

    binary: each value is 1 / sqrt(D) or minus that, so that the vector has unit length.
    """
    match encoding_format:
        case "int8":
            return vectors.astype(np.float32) * np.float32(INT8_RANGE / (127 * np.sqrt(dimensions)))
        case "binary":
            signs = np.unpackbits(vectors, axis=-1, count=dimensions).astype(np.float32) * 2 - 1
            return signs / np.float32(np.sqrt(dimensions))
        case _:
            return vectors.astype(np.float32, copy=False)
