"""The shift that makes a matrix convex, against dense eigenvalues."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxlimit import limits, spectrum
from jaxlimit._core.operator import Operator


def measured(values, seed=0, **counts):
    """Lanczos on a diagonal operator, one program for all of them."""
    values = jnp.asarray(values, jnp.float32)
    operator = Operator(Partial(jnp.multiply, values), values.size, jnp.float32)
    return spectrum.spectral_measure(operator, jax.random.key(seed), **counts)


def spectra():
    """Bulk, outliers and a negative tail of several shapes, hard ends among them."""
    rng = np.random.default_rng(0)
    bulk = rng.exponential(0.01, 380)
    yield np.concatenate([bulk, [3.0, 2.0, 1.0], -rng.exponential(0.05, 17)])
    yield np.concatenate([-bulk, np.linspace(0.1, 4, 20)])
    yield np.cos(np.pi * np.arange(400) / 399) - 0.2  # crowded at both ends
    yield np.concatenate([np.zeros(399), [-1e-3]])  # one needle in a null space
    yield np.linspace(0.5, 1.0, 400)


@pytest.mark.parametrize(("num_steps", "num_probes"), [(24, 1), (48, 1), (24, 3)])
def test_nothing_lies_below_the_shift(num_steps, num_probes):
    for values in spectra():
        for seed in range(4):
            measure = measured(values, seed, num_steps=num_steps, num_probes=num_probes)
            shift = limits.convex_shift(measure)
            assert values.min() + shift >= -1e-6 * np.abs(values).max()
            assert shift <= max(0, -values.min()) + 0.8 * np.ptp(values)


def test_deeper_runs_and_more_probes_need_less():
    of = lambda steps, probes: limits.convex_shift(  # noqa: E731
        measured(np.linspace(-0.1, 2.0, 400), num_steps=steps, num_probes=probes)
    )
    assert 0.1 <= of(48, 1) < of(24, 3) < of(24, 1) < 2.2
    assert of(48, 1) < 0.2


def test_what_is_known_exactly_is_shifted_by_no_more():
    exact = spectrum.exact_measure(jnp.array([-0.25, 1.0, 2.0]))
    assert limits.convex_shift(exact) == 0.25
    assert limits.convex_shift(spectrum.exact_measure(jnp.array([0.5, 1.0]))) == 0
    # Four eigenvalues: Lanczos ends, and has seen them all.
    ended = measured(np.tile([-0.5, 0.0, 1.0, 2.0], 100), num_steps=24)
    assert limits.convex_shift(ended) == pytest.approx(0.5, rel=1e-5)


def test_too_few_steps_tell_nothing():
    measure = measured(np.linspace(-0.1, 2.0, 400), num_steps=6)
    assert limits.convex_shift(measure) == np.inf
    assert limits.convex_shift(measure, miss_probability=1.0) < np.inf
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="miss_probability must lie in"):
            limits.convex_shift(measure, miss_probability=wrong)
    with pytest.raises(TypeError, match="measure must be a SpectralMeasure"):
        limits.convex_shift(jnp.ones(3))
