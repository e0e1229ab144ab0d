"""finish(): cutting and normalising, as properties."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.encoders.base import Vectors, cosine_rows, finish

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
matrices = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=finite)


@given(matrices, st.integers(1, 8))
def test_rows_have_unit_length_or_stay_zero(vectors: Vectors, dimensions: int) -> None:
    found = finish(vectors, True, dimensions)
    assert found.shape == (len(vectors), min(dimensions, vectors.shape[1]))
    assert found.dtype == np.float32
    zero = ~vectors[:, :dimensions].any(axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), np.where(zero, 0.0, 1.0), atol=1e-5)


@given(matrices, st.integers(1, 8))
def test_without_normalising_it_only_cuts(vectors: Vectors, dimensions: int) -> None:
    np.testing.assert_array_equal(finish(vectors, False, dimensions), vectors[:, :dimensions])


@given(matrices)
def test_the_input_is_not_modified_and_finish_is_idempotent(vectors: Vectors) -> None:
    before = vectors.copy()
    once = finish(vectors, True)
    np.testing.assert_array_equal(vectors, before)
    np.testing.assert_allclose(finish(once, True), once, atol=1e-6)


@given(matrices, st.integers(-20, 20))
def test_scale_does_not_matter(vectors: Vectors, exponent: int) -> None:
    tame = np.clip(vectors, -1e3, 1e3)
    tame[np.abs(tame) < 1e-3] = 0
    np.testing.assert_allclose(finish(tame * np.float32(2.0**exponent), True), finish(tame, True), atol=1e-6)


def test_cosines() -> None:
    left = np.array([[1, 0], [1, 1], [0, 0], [1e-30, 0]], dtype=np.float32)
    right = np.array([[2, 0], [1, -1], [1, 0], [1e30, 0]], dtype=np.float32)
    np.testing.assert_allclose(cosine_rows(left, right), [1, 0, 0, 1], atol=1e-6)
