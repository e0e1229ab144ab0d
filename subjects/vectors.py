"""Vectors on the wire: float32 as little-endian bytes, as base64 of those bytes, or as JSON numbers."""

import base64
import binascii
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from . import names

EncodingFormat: TypeAlias = Literal["float", "base64"]
FloatArray: TypeAlias = npt.NDArray[np.float32]

_SCHEMA = {
    "description": "JSON: numbers, or base64 of little-endian float32. MessagePack: little-endian float32 bytes.",
    "anyOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "contentEncoding": "base64"},
    ],
}


def _read(value: Any) -> Any:
    """Any of the three forms as float32 (D,); ValueError if it is none of them."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from None
    if isinstance(value, bytes):
        return np.frombuffer(value, dtype="<f4")
    if isinstance(value, list):
        return np.asarray(value, dtype=np.float32)
    raise ValueError("a vector is bytes, base64 or numbers")


Vector: TypeAlias = Annotated[
    FloatArray,
    BeforeValidator(_read),
    PlainSerializer(lambda vector: vector.tolist(), return_type=list[float]),
    WithJsonSchema(_SCHEMA),
]


def little_endian(vector: FloatArray) -> bytes:
    """float32 (D,) -> 4 x D bytes."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def max_bytes(dimensions: int, encoding_format: EncodingFormat, content_type: str) -> int:
    """The most bytes that one vector takes in a reply of this content type."""
    if encoding_format == "base64":
        return 4 * ((4 * dimensions + 2) // 3) + 8
    if content_type == names.MSGPACK:
        return 4 * dimensions + 8
    return 16 * dimensions + 8
