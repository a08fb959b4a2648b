"""Sharing a tolerance out, piece by piece: the curve of a layer, its hull, the sale, the errors."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.spatial import ConvexHull

from jaxlimit.limits import by_layer, coupling
from jaxlimit.limits.bounds import lower_bound
from jaxlimit.limits.layers import _Curve, _curve, _hull, _share_out
from jaxlimit.spectrum import SpectralMeasure, exact_measure


@pytest.mark.parametrize("negative", ["abs", "clip"])
@pytest.mark.parametrize(
    ("unit", "dtype"), [(1, np.float32), (1e-20, np.float32), (1e-3, np.float16)]
)
def test_the_curve_of_a_layer_solves_the_condition_at_each_count(negative, unit, dtype):
    """(1/D) Σ λ/(λ + c) = k/D for c, by bracketing in float64, and ε = ½ R(k)² c."""
    rng = np.random.default_rng(0)
    eigenvalues = np.float32(rng.normal(size=24) * 10.0 ** rng.uniform(-3, 1, 24) / 7)
    weights = (rng.normal(size=24) * unit).astype(dtype)
    size = np.abs(eigenvalues) if negative == "abs" else np.maximum(eigenvalues, 0)
    epsilons, counts = _curve(exact_measure(jnp.asarray(eigenvalues)), weights, negative, 256)
    assert counts.tolist() == list(range(24, 0, -1))
    squares = np.sort(np.float64(weights) ** 2)
    expected = []
    for k in counts:
        demand = lambda log: np.sum(size / (size + np.exp(log))) - k  # noqa: B023, E731
        c = 0 if (size > 0).sum() <= k else np.exp(optimize.brentq(demand, -60, 20))
        expected.append(c * squares[: 24 - k].sum() / 2)
    np.testing.assert_allclose(epsilons, expected, rtol=2e-4, atol=1e-12 * unit**2)
    assert (np.diff(epsilons) >= 0).all()


def test_the_curve_of_a_layer_without_weights_or_of_one_eigenvalue():
    epsilons, counts = _curve(exact_measure(jnp.ones(3)), np.zeros(3, np.float32), "abs", 8)
    assert (epsilons.tolist(), counts.tolist()) == ([0, 0, 0], [3, 2, 1])
    # One of D = 8 curved: at k = 1, c = 0; by clip the negative one asks for nothing.
    sharp = exact_measure(jnp.array([4.0] + 7 * [0.0]))
    np.testing.assert_allclose(_curve(sharp, np.ones(8, np.float32), "abs", 8)[0], 0)
    # λ/(λ + c) = 1/8 at c = 7λ, the largest that is asked for.
    equal, _ = _curve(exact_measure(jnp.full(8, 3.0)), np.ones(8, np.float32), "abs", 8)
    assert equal[-1] == pytest.approx(7 * 3.0 * 7 / 2, rel=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_hull_is_that_of_qhull(seed):
    rng = np.random.default_rng(seed)
    epsilons = np.sort(rng.integers(0, 12, 15)).astype(float)
    counts = np.sort(rng.choice(100, 15, replace=False))[::-1]
    hull = _hull(epsilons, counts)
    points = np.stack([epsilons, counts], 1)
    lower = [points[i] for i in ConvexHull(points).vertices]
    # Below and to the left of the line from the first point, at its fewest, to the last.
    first = (epsilons[0], counts[epsilons == epsilons[0]].min())
    expected = [p for p in lower if p[1] <= np.interp(p[0], [first[0], epsilons[-1]],
                                                      [first[1], counts[-1]])]  # fmt: skip
    np.testing.assert_array_equal(np.stack(hull, 1), sorted(map(tuple, expected)))


def curves():
    """Two layers that save 8, 2 and 6, 1 a unit of ε, and keep 1 at the end."""
    a = _Curve(np.array([0.0, 1.0, 3.0]), np.array([13, 5, 1]))
    b = _Curve(np.array([0.5, 1.5, 4.5]), np.array([10, 4, 1]))
    return {"a": a, "b": b}


@pytest.mark.parametrize(
    ("epsilon", "shares", "rate"),
    [
        (0.5, (0.0, 0.5), 0),  # spent on what is flat already
        (1.0, (0.5, 0.5), 8),
        (2.0, (1.0, 1.0), 6),
        (3.5, (2.0, 1.5), 2),
        (7.0, (3.0, 4.0), 1),
        (9.5, (4.0, 5.5), 1),  # what nobody needs is shared out evenly
    ],
)
def test_tolerance_goes_where_it_saves_the_most(epsilon, shares, rate):
    spent, multiplier = _share_out(curves(), epsilon, None)
    assert (spent["a"], spent["b"]) == pytest.approx(shares)
    assert multiplier == rate
    assert sum(spent.values()) == pytest.approx(epsilon)


@pytest.mark.parametrize(
    ("target", "shares"),
    [(23, (0, 0.5)), (19, (0.5, 0.5)), (12, (1, 1)), (7, (2, 1.5)), (2, (3, 4.5)), (0, (3, 4.5))],
)
def test_tolerance_is_spent_until_few_enough_are_kept(target, shares):
    spent, _ = _share_out(curves(), None, target)
    assert (spent["a"], spent["b"]) == pytest.approx(shares)


def test_too_little_for_what_is_flat_already_takes_nothing_from_others():
    spent, multiplier = _share_out(curves(), 0.25, None)
    assert (spent["a"], spent["b"], multiplier) == (0, 0.5, 0)


def measure(seed, dim):
    """Two probes with random error, as a quadrature."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(4), 2)
    nodes = jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    return SpectralMeasure.from_nodes(nodes, jnp.asarray(weights, jnp.float32), dim=dim)


@pytest.mark.parametrize("negative", ["abs", "clip"])
@pytest.mark.parametrize(("dims", "ridge"), [((50, 20, 30), 0.6), ((4, 2, 2), 0.1)])
def test_errors_of_the_coupling_are_those_of_a_quotient(negative, dims, ridge):
    """By the delta method for Σ t_l / t, each end of the whole pulling the other way."""
    whole, parts = measure(0, dims[0]), {"a": measure(1, dims[1]), "b": measure(2, dims[2])}
    found = coupling(whole, parts, ridge, negative=negative)
    trace = lambda m: lower_bound(m, 1.0, ridge / 2, negative=negative)  # noqa: E731
    if negative == "abs" and ridge < 0.5:
        assert trace(parts["a"]).upper == 1  # else both ends would be as far
    total, shares = (
        trace(whole),
        [(dim / dims[0], trace(part)) for dim, part in zip(dims[1:], parts.values(), strict=True)],
    )
    quotient = sum(share * float(t.value) for share, t in shares) / float(total.value)
    assert found.value == pytest.approx(quotient - 1, rel=1e-5)

    def joined(of_part, of_whole):
        squares = [(share * float(of_part(t))) ** 2 for share, t in shares]
        return np.sqrt(sum(squares) + (quotient * float(of_whole)) ** 2) / float(total.value)

    error = joined(lambda t: t.standard_error, total.standard_error)
    low = joined(lambda t: t.value - t.lower, total.upper - total.value)
    high = joined(lambda t: t.upper - t.value, total.value - total.lower)
    assert found.standard_error == pytest.approx(error, rel=1e-4)
    assert found.value - found.lower == pytest.approx(low, rel=1e-4)
    assert found.upper - found.value == pytest.approx(high, rel=1e-4)


def test_all_may_be_kept_and_the_multiplier_is_what_a_unit_saves():
    spectra = {"a": exact_measure(jnp.full(6, 2.0)), "b": exact_measure(jnp.full(6, 1.0))}
    weights = {"a": jnp.arange(1.0, 7.0), "b": jnp.arange(1.0, 7.0)}
    kept = by_layer(spectra, weights, ratio=1.0)
    assert (kept.num_kept, kept.ratio, kept.multiplier) == (12, 1, 0)
    assert sum(by_layer(spectra, weights, epsilon=3.0).epsilons.values()) == pytest.approx(3)
