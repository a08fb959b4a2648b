"""Intervals against SciPy's distributions, and the arithmetic of an estimate."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxlimit._core import estimate
from jaxlimit._core.estimate import Estimate


@pytest.mark.parametrize("n", [2, 3, 10])
@pytest.mark.parametrize("shape", [(), (4,)])
def test_the_mean_of_samples_has_students_interval(n, shape):
    samples = np.random.default_rng(0).normal(size=(n, *shape))
    found = estimate.estimate_from_samples(jnp.asarray(samples, jnp.float32))
    error = samples.std(0, ddof=1) / n**0.5
    low, high = stats.t.interval(0.95, n - 1, samples.mean(0), error)
    for value, wanted in zip(found, (samples.mean(0), error, low, high), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-5)


def test_one_sample_tells_nothing_of_its_error():
    found = estimate.estimate_from_samples(jnp.array([[2.0, 3.0]]))
    assert [np.asarray(x).tolist() for x in found] == [
        [2, 3], [np.inf] * 2, [-np.inf] * 2, [np.inf] * 2,
    ]  # fmt: skip


def test_narrow_samples_are_averaged_in_float32():
    found = estimate.estimate_from_samples(jnp.ones(4096, jnp.bfloat16).at[0].set(2))
    assert found.value.dtype == jnp.float32
    assert found.value == 1 + 2.0**-12
    assert found.standard_error == pytest.approx(2.0**-12, rel=1e-3)


def test_intervals_of_a_known_error():
    found = estimate.normal_interval(jnp.array(3.0), 0.5)
    assert tuple(found) == pytest.approx((3, 0.5, *stats.norm.interval(0.95, 3, 0.5)), rel=1e-4)
    quantile = estimate.NORMAL_QUANTILE
    assert quantile == pytest.approx(stats.norm.ppf(0.975), rel=1e-4)
    assert stats.norm.ppf(0.5 + estimate.CONFIDENCE / 2) == pytest.approx(1.96, rel=1e-4)
    exact = estimate.exact_estimate(jnp.array(3.0))
    assert tuple(exact) == (3, 0, 3, 3)
    assert (estimate.value_of(found), estimate.value_of(7)) == (3, 7)


@pytest.mark.parametrize("num_free", [None, 1, 6])
def test_intervals_of_a_spread_are_those_of_its_logarithm(num_free):
    value, error = jnp.array([2.0, 1e-20, 0.0]), jnp.array([0.3, 2e-21, 0.0])
    quantile = stats.norm.ppf(0.975) if num_free is None else stats.t.ppf(0.975, num_free)
    found = estimate.positive_interval(value, error, num_free)
    factor = np.exp(quantile * np.array([0.15, 0.2, 0]))
    np.testing.assert_allclose(found.lower, np.float64(value) / factor, rtol=1e-4)
    np.testing.assert_allclose(found.upper, np.float64(value) * factor, rtol=1e-4)
    np.testing.assert_array_equal(found.value, value)
    np.testing.assert_array_equal(found.standard_error, error)


def test_arithmetic_keeps_the_ends_in_order():
    one = Estimate(jnp.float32(2), jnp.float32(0.5), jnp.float32(1), jnp.float32(4))
    assert tuple(-3 * one) == (-6, 1.5, -12, -3)
    assert tuple(one * 3) == (6, 1.5, 3, 12)
    assert tuple(one / -4) == (-0.5, 0.125, -1, -0.25)
    assert tuple(one + 1) == tuple(1 + one) == (3, 0.5, 2, 5)
    assert tuple(one - 1) == (1, 0.5, 0, 3)
    assert (float(one), f"{one:.2f}", f"{one}") == (2, "2.00", repr(one))
    assert np.asarray(one, np.float64).dtype == np.float64
    assert isinstance(np.float32(2) * one, Estimate)
