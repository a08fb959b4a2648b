"""Norms and spreads against NumPy in float64, at every scale that the result can be told in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit._core import scale

SCALES = [10.0**n for n in (-36, -30, -20, -19, -3, 0, 4, 18, 20, 30, 36)]


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)


@pytest.mark.parametrize("s", SCALES)
@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_norms_and_spreads_at_every_scale(array, s, axis):
    scaled = array * np.float32(s)
    exact = scaled.astype(float)
    for keepdims in (False, True):
        result = jax.jit(scale.norm, static_argnums=1, static_argnames="keepdims")(
            scaled, axis, keepdims=keepdims
        )
        wanted = np.sqrt((exact**2).sum(axis, keepdims=keepdims))
        np.testing.assert_allclose(result, wanted, rtol=1e-6)
        assert result.shape == wanted.shape
    if isinstance(axis, int):
        for ddof in (0, 1):
            result = scale.deviation(scaled, axis, ddof=ddof)
            np.testing.assert_allclose(result, exact.std(axis, ddof=ddof), rtol=1e-6)


def test_no_bit_changes_where_plain_squares_would_do(array):
    plain = jnp.sqrt(jnp.sum(jnp.asarray(array) ** 2, axis=1))
    np.testing.assert_array_equal(scale.norm(array, 1), plain)
    np.testing.assert_array_equal(scale.norm(array * 2.0**-60, 1), plain * 2.0**-60)


def test_the_ends_of_the_range():
    largest, least = np.finfo(np.float32).max, np.finfo(np.float32).tiny
    assert scale.norm(jnp.array([largest])) == largest
    assert scale.norm(jnp.array([least])) == least
    assert scale.norm(jnp.array([largest, largest])) == np.inf
    assert scale.norm(jnp.array([np.inf, 1.0])) == np.inf
    assert np.isnan(scale.norm(jnp.array([np.nan, 1.0])))
    assert scale.norm(jnp.zeros(3)) == 0
    assert scale.norm(jnp.zeros((0, 2)), 0).tolist() == [0, 0]


def test_narrow_types_are_summed_in_float32():
    for dtype in (jnp.float16, jnp.bfloat16):
        result = scale.norm(jnp.full(10_000, 8.0, dtype))
        assert (result.dtype, float(result)) == (jnp.float32, 800)
        samples = jnp.tile(jnp.array([60000.0, 0.0], dtype), 50)
        expected = np.asarray(samples, float).std(ddof=1)
        np.testing.assert_allclose(scale.deviation(samples), expected, rtol=1e-6)
        assert scale.deviation(samples).dtype == jnp.float32


@pytest.mark.parametrize("s", [1e-30, 1.0, 1e30])
def test_eigenvalues_at_every_scale(s):
    matrix = np.random.default_rng(0).normal(size=(5, 5))
    matrix = ((matrix + matrix.T) * s).astype(np.float32)
    values, vectors = scale.eigh(jnp.asarray(matrix))
    expected = np.linalg.eigvalsh(matrix.astype(float))
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    back = np.asarray(vectors, float) * np.asarray(values, float) @ np.asarray(vectors, float).T
    np.testing.assert_allclose(back / s, matrix / s, atol=1e-5)


def test_the_derivative_is_the_unit_vector_and_zero_at_zero():
    vector = jnp.array([3.0, -4.0])
    for s in (1e-30, 1.0, 1e30):
        np.testing.assert_allclose(jax.grad(scale.norm)(s * vector), vector / 5, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(scale.norm)(jnp.zeros(2)), [0, 0])
