"""The bounds where their formula alone would fail: at 0, at ∞, beyond the range, and sidewise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import limits
from jaxlimit.limits.bounds import curvature_share, relative_ridge, ridge
from jaxlimit.spectrum import SpectralMeasure, exact_measure


@pytest.mark.parametrize(
    ("radius", "epsilon", "unit"),
    # Down to the least normal number: some programs of XLA take those below it for 0.
    [(2.0, 0.5, 1.0), (1e-25, 1e-30, 1e20), (1e25, 1e30, 1e-20), (3.0, 2e-38, 2e-38)],
)
def test_the_ridge_is_had_where_its_parts_leave_the_range(radius, epsilon, unit):
    parts = [np.float32(x) for x in (radius, epsilon, unit)]
    r, e, u = (float(x) for x in parts)
    assert relative_ridge(*parts) == pytest.approx(2 * e / u / r / r, rel=1e-6)


def test_the_ridge_at_its_ends():
    """∞ where nothing is removed or all is tolerated, whatever the other; else 0."""
    assert ridge(0.0, 0.0) == ridge(0.0, 1.0) == ridge(jnp.inf, jnp.inf) == jnp.inf
    assert ridge(1.0, 0.0) == ridge(jnp.inf, 1.0) == 0
    for ends in ((0.0, 0.0), (0.0, 1.0), (1.0, jnp.inf), (2.0, 0.0), (2.0, 0.5)):
        slopes = jax.grad(ridge, (0, 1))(*ends)
        finite = ends[0] > 0 and ends[1] < jnp.inf
        wanted = (-4 * ends[1] / ends[0] ** 3, 2 / ends[0] ** 2) if finite else (0, 0)
        np.testing.assert_allclose(slopes, wanted, rtol=1e-6)


def test_the_derivative_of_the_bound_by_a_tolerance_of_zero():
    """dρ_L/dε = -(2/R²) (1/D) Σ 1/λ at ε = 0, as the difference quotient beside it says."""
    measure = exact_measure(jnp.array([1.0, 4.0]))
    bound = lambda epsilon: limits.lower_bound(measure, 2.0, epsilon).value  # noqa: E731
    assert jax.grad(bound)(0.0) == pytest.approx(-0.5 * 0.625, rel=1e-6)
    assert (bound(1e-3) - bound(0.0)) / 1e-3 == pytest.approx(-0.5 * 0.625, rel=1e-2)


@pytest.mark.parametrize("negative", limits.bounds.NEGATIVE)
def test_a_share_and_its_derivative_without_curvature_or_ridge(negative):
    share = lambda x, c: curvature_share(x, c, negative=negative)  # noqa: E731
    for c in (0.0, 1.0, jnp.inf):
        assert share(0.0, c) == 0
        assert jnp.isfinite(jax.grad(share)(0.0, c))
        assert jnp.isfinite(jax.grad(share, 1)(0.0, c))
    for x in (1e-30, 3.0, 1e30):
        assert share(x, 0.0) == 1
        assert share(-x, 0.0) == (negative == "abs")
    assert share(1e-30, 1e-30) == 0.5


@pytest.mark.parametrize("dim", [3, 11, 49, 83, 1000])
def test_no_bound_is_beyond_one_by_rounding(dim):
    measure = exact_measure(jnp.linspace(1.0, 2.0, dim))
    for found in limits.lower_bound(measure, jnp.inf, 0.3)._replace(standard_error=1.0):
        assert 1 - 1e-5 < found <= 1


def test_the_bounds_of_removed_weights_take_their_share_of_all():
    """ρ_U = k/D + (1/D) Σ over the removed, its error and both ends in proportion."""
    eigenvalues = jnp.array([-1.0, 0.5, 4.0])
    c = 2 * 0.3 / 1.5**2
    for negative, sizes in (("abs", [1, 0.5, 4]), ("clip", [0, 0.5, 4])):
        shares = np.sum(np.array(sizes) / (np.array(sizes) + c)) / 7
        settings = {"dim": 7, "negative": negative}
        gap = limits.gap(exact_measure(eigenvalues), 1.5, 0.3, **settings)
        high = limits.upper_bound(exact_measure(eigenvalues), 1.5, 0.3, **settings)
        for found, wanted in ((gap, shares), (high, shares + 4 / 7)):
            ends = (found.value, found.lower, found.upper)
            np.testing.assert_allclose(ends, [wanted] * 3, rtol=1e-6)
    whole = limits.gap(exact_measure(eigenvalues), 1.5, 0.3, dim=3)
    assert whole.value == limits.lower_bound(exact_measure(eigenvalues), 1.5, 0.3).value
    with pytest.raises(ValueError, match="dim must be at least 3"):
        limits.gap(exact_measure(eigenvalues), 1.5, 0.3, dim=2)


def test_an_interval_of_removed_weights_is_scaled_as_a_whole():
    measure = limits_measure()
    part = limits.lower_bound(measure, 1.0, 0.05)
    gap = limits.gap(measure, 1.0, 0.05, dim=120)
    high = limits.upper_bound(measure, 1.0, 0.05, dim=120)
    assert part.standard_error > 0
    assert part.lower < part.value < part.upper
    for field in part._fields:
        assert getattr(gap, field) == pytest.approx(float(getattr(part, field)) / 3)
        kept = 0 if field == "standard_error" else 80 / 120
        assert getattr(high, field) == pytest.approx(float(getattr(gap, field)) + kept)


def limits_measure():
    """Forty weights seen by two random probes, written down as a quadrature."""
    nodes = jnp.array([[0.0, 0.1, 1.0], [0.01, 0.3, 0.9]])
    return SpectralMeasure.from_nodes(nodes, jnp.array([[0.5, 0.3, 0.2], [0.6, 0.2, 0.2]]), dim=40)


def test_the_bound_of_the_trace_is_jensens():
    """λ/(λ + c) at the mean of all D eigenvalues."""
    for trace, radius, epsilon, dim in ((6.0, 2.0, 0.5, 3), (1e-30, 1.0, 2e-30, 4)):
        mean, c = trace / dim, 2 * epsilon / radius**2
        assert limits.trace_bound(trace, radius, epsilon, dim=dim) == pytest.approx(
            mean / (mean + c), rel=1e-6
        )
    assert limits.trace_bound(1.0, 0.0, 0.0, dim=2) == 0
    assert limits.trace_bound(1.0, 1.0, 0.0, dim=2) == 1
    assert limits.trace_bound(0.0, 1.0, 0.0, dim=2) == 0
    assert jnp.isfinite(jax.grad(lambda t: limits.trace_bound(t, 1.0, 1.0, dim=2))(0.0))
