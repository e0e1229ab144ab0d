"""Vectors in messages: little-endian bytes in MessagePack, numbers in JSON, or as it is asked for."""

import base64
import binascii
from typing import Annotated, Any, TypeAlias

import numpy as np
from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema

from . import names
from .encodings import DTYPES, WireArray, values
from .names import EncodingFormat

_SCHEMA = {
    "description": "A vector as encoding_format says, float32 where it is absent. JSON: numbers; for base64 a string; "
    "for binary the bytes as numbers. MessagePack: little-endian bytes; for base64 a string, for array numbers.",
    "anyOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "contentEncoding": "base64"},
    ],
}
_AROUND_BYTES = 16
"""What a reply holds for a vector besides its values: its length, and the text's index where that was cut."""
_NUMBER_BYTES = {"float32": 16, "float16": 16, "array": 16, "int8": 5, "binary": 4}
"""The longest number in JSON, its comma included."""
_SINGLE_BYTES = 5
"""A single-precision number in MessagePack, the byte that says so included."""


def _read(value: Any, info: ValidationInfo) -> Any:
    """Any of the three forms as an array of the dtype that the message's encoding_format, read before it, says."""
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
    """(D,) -> its values, one after another."""
    return vector.astype(vector.dtype.newbyteorder("<"), copy=False).tobytes()


def max_bytes(dimensions: int, encoding_format: EncodingFormat, content_type: str) -> int:
    """The most bytes that one vector takes in a reply of this content type, with what belongs to it."""
    count = values(encoding_format, dimensions)
    size = count * DTYPES[encoding_format].itemsize
    if encoding_format == "base64":
        size = 4 * -(-size // 3)
    elif content_type != names.MSGPACK:
        size = count * _NUMBER_BYTES[encoding_format]
    elif encoding_format == "array":
        size = count * _SINGLE_BYTES
    return size + _AROUND_BYTES
