"""Vectors in every encoding: what lies on the wire, that it comes back, how near to float32, in how many bytes."""

import base64
import struct
from typing import get_args

import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from subjects import codec, names, to_float32
from subjects.embed import EmbedBatchReply, EmbedChunk, EmbedReply, Usage
from subjects.names import EncodingFormat
from subjects.vectors import DTYPES, INT8_RANGE, encode, max_bytes, values

FORMATS = get_args(EncodingFormat)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.integers(1, 70).flatmap(lambda length: arrays(np.float32, (length,), elements=finite))
matrices = st.tuples(st.integers(1, 4), st.integers(1, 70)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-1, 1, width=32))
)


def reply_of(matrix: np.ndarray, encoding: EncodingFormat) -> EmbedBatchReply:
    return EmbedBatchReply(
        model="m",
        version="v",
        usage=Usage(tokens=1),
        encoding_format=encoding,
        dimensions=matrix.shape[1],
        embeddings=list(encode(matrix, encoding)),
        truncated=list(range(len(matrix))),
    )


def unit(matrix: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(matrix.astype(np.float64), axis=1, keepdims=True)
    return np.divide(matrix, norms, out=np.zeros_like(matrix), where=norms > 1e-6)


@given(matrices, st.sampled_from(FORMATS), st.sampled_from([names.JSON, names.MSGPACK]))
def test_a_reply_comes_back_as_it_was_in_its_dtype(matrix, encoding, content_type):
    sent = reply_of(matrix, encoding)
    body = codec.dumps(sent, content_type)
    got = EmbedBatchReply.model_validate(codec.loads(body, content_type))
    assert got.encoding_format == encoding
    for vector, original in zip(got.embeddings, sent.embeddings, strict=True):
        assert vector.dtype == DTYPES[encoding]
        assert vector.shape == (values(encoding, matrix.shape[1]),)
        np.testing.assert_array_equal(vector, original)


@given(vectors)
def test_float32_base64_and_array_lose_nothing(vector):
    for encoding in ("float32", "base64", "array"):
        for content_type in (names.JSON, names.MSGPACK):
            reply = EmbedReply(
                model="m",
                version="v",
                usage=Usage(tokens=1),
                encoding_format=encoding,
                dimensions=len(vector),
                embedding=encode(vector, encoding),
            )
            got = EmbedReply.model_validate(codec.loads(codec.dumps(reply, content_type), content_type))
            np.testing.assert_array_equal(to_float32(got.embedding, encoding, len(vector)), vector)


@given(vectors)
def test_float16_is_the_nearest_and_never_infinite(vector):
    half = encode(vector, "float16")
    assert np.isfinite(half).all()
    within = np.abs(vector) <= 65504
    np.testing.assert_allclose(to_float32(half, "float16", len(vector))[within], vector[within], rtol=2**-11, atol=1e-7)


@given(matrices)
def test_int8_is_within_half_a_step_or_at_its_end(matrix):
    rows = unit(matrix)
    dimensions = rows.shape[1]
    end = INT8_RANGE / np.sqrt(dimensions)
    back = to_float32(encode(rows, "int8"), "int8", dimensions)
    np.testing.assert_allclose(back, np.clip(rows, -end, end), atol=0.501 * end / 127)


@given(matrices)
def test_binary_keeps_the_sign_of_every_value(matrix):
    dimensions = matrix.shape[1]
    back = to_float32(encode(matrix, "binary"), "binary", dimensions)
    assert back.shape == matrix.shape
    np.testing.assert_array_equal(back > 0, matrix > 0)
    np.testing.assert_allclose(np.linalg.norm(back, axis=1), 1, atol=1e-5)


@given(matrices, st.sampled_from(FORMATS), st.sampled_from([names.JSON, names.MSGPACK]))
def test_no_vector_takes_more_than_its_bound(matrix, encoding, content_type):
    wide = np.where(matrix == 0, 0, np.float32(-1.1754944e-38))
    for rows in (matrix, wide):
        bound = len(rows) * max_bytes(rows.shape[1], encoding, content_type)
        assert len(codec.dumps(reply_of(rows, encoding), content_type)) <= bound + 200


def test_what_lies_on_the_wire():
    row = np.array([0.5, -0.5, 0.25, 0, 0.125, -0.1, 0.1, 0.2, 0.7], np.float32)
    written = {encoding: codec.dumps(reply_of(row[None], encoding), names.MSGPACK) for encoding in FORMATS}
    packed = {encoding: msgpack.unpackb(body) for encoding, body in written.items()}
    assert "encoding_format" not in packed["float32"]
    assert packed["float32"]["embeddings"] == [row.astype("<f4").tobytes()]
    assert packed["float16"]["embeddings"] == [row.astype("<f2").tobytes()]
    assert packed["base64"]["embeddings"] == [base64.b64encode(row.astype("<f4").tobytes()).decode()]
    assert packed["array"]["embeddings"] == [row.tolist()]
    array = b"\x99" + b"".join(struct.pack(">Bf", 0xCA, value) for value in row)
    assert b"embeddings\x91" + array in written["array"]
    eighths = np.rint(row * 127 * 3 / 5).astype(np.int8)
    assert packed["int8"]["embeddings"] == [eighths.tobytes()]
    assert packed["binary"]["embeddings"] == [bytes([0b10101011, 0b10000000])]
    assert {body["dimensions"] for body in packed.values()} == {9}
    assert [body["encoding_format"] for name, body in packed.items() if name != "float32"] == list(FORMATS[1:])

    numbers = {encoding: orjson.loads(codec.dumps(reply_of(row[None], encoding), names.JSON)) for encoding in FORMATS}
    np.testing.assert_array_equal(np.float32(numbers["float32"]["embeddings"]), [row])
    np.testing.assert_array_equal(np.float16(numbers["float16"]["embeddings"]), [row.astype(np.float16)])
    assert numbers["base64"]["embeddings"] == packed["base64"]["embeddings"]
    assert numbers["array"]["embeddings"] == numbers["float32"]["embeddings"]
    assert numbers["int8"]["embeddings"] == [eighths.tolist()]
    assert numbers["binary"]["embeddings"] == [[0b10101011, 0b10000000]]


@pytest.mark.parametrize("vector", ["not base64!", [1, None], [300], {"a": 1}, 5])
def test_what_is_no_vector_is_a_fault_of_the_reply(vector):
    body = {"version": "v", "index": 0, "dimensions": 1, "encoding_format": "int8", "embeddings": [vector]}
    with pytest.raises(ValueError, match="embeddings"):
        EmbedChunk.model_validate(body)
