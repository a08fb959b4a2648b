"""Every number of `limits` over scales of the weights, the Hessian and ε: ρ* stays where it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import Estimate, limits, spectrum

# Powers of two, so that scaling is exact and the results must agree to the bit.
SCALES = [2.0**n for n in (-100, -66, -33, 0, 33, 66, 100)]
DIM = 60


@pytest.fixture(scope="module")
def problem():
    """A Lanczos measure of an indefinite Hessian with an interval, weights with ties, and ε."""
    rng = np.random.default_rng(0)
    eigenvalues = jnp.asarray(rng.standard_normal(DIM) * np.exp(rng.standard_normal(DIM)))
    measure = spectrum.spectral_measure(
        lambda v: eigenvalues.astype(v.dtype) * v, jax.random.key(0), dim=DIM, num_steps=12
    )
    weights = jnp.asarray(rng.standard_normal(DIM).round(1) + 0.01, jnp.float32)
    return measure, weights, jnp.float32(3.0)


def scaled_measure(measure, s):
    """The measure of s H, by hand: Lanczos at extreme scales has tests of its own."""
    nodes = {"nodes", "diagonal", "off_diagonal", "residual_norm"}

    def scale(path, leaf):
        return leaf * s if path[-1].name in nodes else leaf

    return jax.tree_util.tree_map_with_path(scale, measure)


@jax.jit
def numbers(measure, weights, epsilon, of_h, of_w):
    """Every public number, each in units in which none depends on the two scales."""
    given_epsilon = Estimate(epsilon, epsilon / 8, epsilon / 2, 2 * epsilon)
    found = {}
    for negative in ("abs", "clip"):
        for offset in (None, "perpendicular", "random"):
            if offset is None:
                limit = limits.pruning_limit(measure, weights, given_epsilon, negative=negative)
            else:
                limit = limits.random_subspace_threshold(
                    measure, weights, given_epsilon, negative=negative, offset=offset
                )
            how = {"negative": negative, "offset": offset}
            rates = limits.sensitivity(measure, limit, epsilon, **how)
            found[f"{negative} {offset}"] = (
                limit._replace(radius=limit.radius / of_w, threshold=limit.threshold / of_w),
                # In two steps, since a derivative may leave the range where its product does not.
                rates._replace(epsilon=0.0, radius=rates.radius * of_w),
            )
        limit = limits.pruning_limit(measure, weights, epsilon, negative=negative)
        factors = limits.key_factors(measure, weights, epsilon, negative=negative, limit=limit)
        found[f"{negative} factors"] = factors._replace(
            radius=factors.radius / of_w,
            norm=factors.norm / of_w,
            trace=factors.trace / of_h,
            rise=factors.rise / of_w / of_w / of_h,
        )
        found[f"{negative} bounds"] = (
            limits.lower_bound(measure, limit.radius, epsilon, negative=negative),
            limits.upper_bound(measure, limit.radius, epsilon, dim=2 * DIM, negative=negative),
            limits.gap(measure, limit.radius, epsilon, dim=2 * DIM, negative=negative),
            limits.trace_bound(factors.trace, limit.radius, epsilon, dim=DIM),
        )
        found["ridge"] = limits.ridge(limit.radius, epsilon) / of_h
    return found


def assert_same(found, expected):
    flat, treedef = jax.tree.flatten(found)
    other, other_treedef = jax.tree.flatten(expected)
    assert treedef == other_treedef
    for a, b in zip(flat, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6)


@pytest.mark.parametrize("s", [s for s in SCALES if s != 1])
def test_scaling_the_hessian_and_the_tolerance_changes_nothing(problem, s):
    measure, weights, epsilon = problem
    expected = numbers(measure, weights, epsilon, 1.0, 1.0)
    assert 0 < expected["abs None"][0].ratio < 1
    assert_same(numbers(scaled_measure(measure, s), weights, epsilon * s, s, 1.0), expected)


@pytest.mark.parametrize("s", [2.0**n for n in (-48, -20, 20, 48)])
def test_scaling_the_weights_against_the_hessian_changes_nothing(problem, s):
    measure, weights, epsilon = problem
    expected = numbers(measure, weights, epsilon, 1.0, 1.0)
    assert_same(numbers(scaled_measure(measure, s**-2), s * weights, epsilon, s**-2, s), expected)
