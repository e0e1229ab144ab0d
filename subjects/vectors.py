"""Vectors: the encodings that make them smaller, and how they lie in messages.

Arithmetic is on arrays whose last axis is a vector. In MessagePack a vector is little-endian bytes, in JSON numbers.
"""

import base64
import binascii
from typing import Annotated, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from . import names
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
"""Formats that lose the length of a vector."""

INT8_RANGE = 5.0
"""The value of int8's 127, in multiples of 1 / sqrt(D), the root mean square of the values of a unit vector.

A smaller range clips large values, a larger one rounds all values more coarsely. The lowest cosine to float32 over 400
docstrings and functions of Python's library, embedded by all-MiniLM-L6-v2 (mean in brackets):

    range                 3                  4                  5                  6
    384 dimensions  0.9940 (0.99967)  0.9983 (0.99995)  0.99990 (0.99994)  0.99989 (0.99991)
    cut to 64       0.9907 (0.99988)  0.9998 (0.99996)  0.99992 (0.99994)  0.99988 (0.99991)
"""

_LARGEST_HALF = float(np.finfo(np.float16).max)


def values(encoding_format: EncodingFormat, dimensions: int) -> int:
    """The number of values of a vector with D dimensions in the format's dtype: D, or ceil(D / 8) bytes of bits."""
    return -(-dimensions // 8) if encoding_format == "binary" else dimensions


def encode(vectors: FloatArray, encoding_format: EncodingFormat) -> WireArray:
    """float32 (..., D) -> the format's dtype, (..., D), or (..., ceil(D / 8)) for binary.

    float32, base64, array: unchanged. float16: rounded; larger values become the largest half float.
    int8: round(127 * v * sqrt(D) / INT8_RANGE), clipped to -127..127; for vectors of unit length.
    binary: one bit a value, 1 if it is above 0, the first value in the highest bit of the first byte.
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
    """Vectors of any format -> float32 (..., D), as close to the original as the format allows.

    binary: each value is 1 / sqrt(D) or -1 / sqrt(D), so that the vector has unit length.
    """
    match encoding_format:
        case "int8":
            return vectors.astype(np.float32) * np.float32(INT8_RANGE / (127 * np.sqrt(dimensions)))
        case "binary":
            signs = np.unpackbits(vectors, axis=-1, count=dimensions).astype(np.float32) * 2 - 1
            return signs / np.float32(np.sqrt(dimensions))
        case _:
            return vectors.astype(np.float32, copy=False)


_SCHEMA = {
    "description": "A vector as encoding_format says, float32 if it is absent. JSON: numbers; for base64 a string; "
    "for binary the bytes as numbers. MessagePack: little-endian bytes; for base64 a string, for array numbers.",
    "anyOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "contentEncoding": "base64"},
    ],
}
_AROUND_BYTES = 16
"""Bytes of a reply for one vector besides its values: its length, and the index of its text if that was cut."""
_NUMBER_BYTES = {"float32": 16, "float16": 16, "array": 16, "int8": 5, "binary": 4}
"""Bytes of the longest number in JSON with its comma."""
_SINGLE_BYTES = 5
"""Bytes of a single-precision number in MessagePack with its type byte."""


def _read(value: Any, info: ValidationInfo) -> Any:
    """Any of the three forms as an array. Its dtype is that of the message's encoding_format, which is read before."""
    dtype = DTYPES[info.data.get("encoding_format", "float32")]
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from None
    if isinstance(value, bytes):
        return np.frombuffer(value, dtype)
    if isinstance(value, list):
        return _from_numbers(value, dtype)
    raise ValueError("a vector is bytes, base64 or numbers")


def _from_numbers(numbers: list[Any], dtype: np.dtype[Any]) -> WireArray:
    try:
        return np.array(numbers, dtype)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"not numbers of {dtype.name}: {error}") from None


Vector: TypeAlias = Annotated[
    WireArray,
    BeforeValidator(_read),
    PlainSerializer(lambda vector: vector.tolist(), return_type=list[float]),
    WithJsonSchema(_SCHEMA),
]


def little_endian(vector: WireArray) -> bytes:
    """(D,) -> the bytes of its values in order."""
    return vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()


def max_bytes(dimensions: int, encoding_format: EncodingFormat, content_type: str) -> int:
    """The largest size in bytes of one vector in a reply of this content type, with its length and index."""
    count = values(encoding_format, dimensions)
    size = count * DTYPES[encoding_format].itemsize
    if encoding_format == "base64":
        size = 4 * -(-size // 3)
    elif content_type != names.MSGPACK:
        size = count * _NUMBER_BYTES[encoding_format]
    elif encoding_format == "array":
        size = count * _SINGLE_BYTES
    return size + _AROUND_BYTES
