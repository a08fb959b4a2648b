"""Cones, widths and their numerics against SciPy's own quadrature, roots and minimisers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from jaxlimit import geometry
from jaxlimit.geometry import _numerics


@pytest.fixture
def wide():
    with jax.enable_x64(True):
        yield


def tail(t):
    return 2 * stats.norm.sf(t)


def excess(t, power):
    """E(|g|-t)₊^power, by quadrature."""
    return integrate.quad(lambda x: 2 * stats.norm.pdf(x) * (x - t) ** power, t, t + 12)[0]


# --- Numerics -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("wide")
def test_the_mean_of_chi_is_that_of_gamma_functions():
    dims = np.array([0.25, 1, 2, 3.5, 9, 10, 40])
    exact = 2**0.5 * special.gamma((dims + 1) / 2) / special.gamma(dims / 2)
    np.testing.assert_allclose(_numerics.chi_mean(dims), exact, rtol=5e-15)
    assert _numerics.chi_mean(0.0) == 0
    # √(D - ½) (1 + 1/(16 D²) + …) far out.
    assert _numerics.chi_mean(1e9) == pytest.approx((1e9 - 0.5) ** 0.5, rel=1e-15)


@pytest.mark.usefixtures("wide")
def test_normal_tails_and_what_exceeds_a_threshold():
    thresholds = np.array([0.0, 0.5, 2.0, 4.0])
    np.testing.assert_allclose(_numerics.normal_tail(thresholds), tail(thresholds), rtol=1e-14)
    for t in thresholds:
        first, second = _numerics.excess_moments(t)
        assert first == pytest.approx(excess(t, 1), rel=1e-8)
        assert second == pytest.approx(excess(t, 2), rel=1e-8)
    assert _numerics.normal_tail(jnp.float32(6.0)) == pytest.approx(tail(6.0), rel=1e-5)
    assert _numerics.normal_tail(30.0) == pytest.approx(tail(30.0), rel=1e-12)


@pytest.mark.usefixtures("wide")
def test_quadrature_is_exact_for_polynomials_and_empty_intervals_give_nothing():
    low, high = jnp.array([-1.0, 0.5, 2.0, 1.0]), jnp.array([2.0, 0.75, 2.0, -3.0])
    for k in (0, 1, 20, 95):
        found = _numerics.integrate(lambda x, k=k: x**k, low, high)
        exact = np.where(high > low, (high ** (k + 1) - low ** (k + 1)) / (k + 1), 0)
        np.testing.assert_allclose(found, exact, rtol=1e-11)


@pytest.mark.usefixtures("wide")
def test_roots_to_the_last_bit_and_the_nearer_end_where_there_is_none():
    zero = jnp.zeros(())
    root = lambda f: _numerics.increasing_root(f, zero, zero + 1)  # noqa: E731
    assert root(lambda x: jnp.exp(8 * x) - 9.0) == pytest.approx(np.log(9) / 8, rel=1e-15)
    assert root(lambda x: x + 0.25) == 0
    assert root(lambda x: x - 1.25) == 1
    assert root(lambda x: x**3 - 1e-3) == pytest.approx(0.1, rel=1e-14)
    # On a plateau, where no Newton step can be taken, and at a jump.
    assert 0.2 <= root(lambda x: jnp.maximum(x - 0.3, 0) + jnp.minimum(x - 0.2, 0)) <= 0.3
    assert root(lambda x: jnp.where(x < 0.7, -1.0, 1.0)) == pytest.approx(0.7, rel=1e-15)
    slope = jax.grad(lambda a: root(lambda x: x**2 - a))(0.25)
    assert slope == pytest.approx(1, rel=1e-12)  # d√a/da = 1/(2√a)
    assert jax.grad(lambda a: root(lambda x: x + a))(0.5) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(dtype):
    axes = jnp.linspace(0.5, 2.0, 11).astype(dtype)
    exact = geometry.gaussian_width_ellipsoid(axes.astype(jnp.float32))
    found = geometry.gaussian_width_ellipsoid(axes)
    assert found.dtype == dtype
    assert found == exact.astype(dtype)


def test_as_many_samples_as_asked_for_whatever_the_batch():
    key, sample = jax.random.key(0), lambda _, g: g.sum()
    for num, batch in ((5, 3), (6, 3), (2, 9)):
        found = _numerics.map_gaussian(sample, None, key, 4, num, batch, jnp.float32)
        assert found.shape == (num,)
        assert len(set(found.tolist())) == num


# --- Widths -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wide")
def test_widths_of_balls_boxes_and_flat_ellipsoids():
    assert geometry.gaussian_width_ball(3.0, 2.0) == pytest.approx(2 * (8 / np.pi) ** 0.5)
    boxes = geometry.gaussian_width_box(jnp.array([[1.0, 2.0, 0.0], [0.5, 0.5, 3.0]]))
    np.testing.assert_allclose(boxes, (2 / np.pi) ** 0.5 * np.array([3.0, 4.0]), rtol=1e-14)
    # E √(a² g² + b² h²) = a √(2/π) E(1 - b²/a²), a complete elliptic integral.
    axes = np.array([[1.0, 1.0], [3.0, 0.5], [2.0, 0.0], [1e-3, 1.0], [1e100, 2e100], [0.0, 0.0]])
    large, small = axes.max(1), axes.min(1)
    ratio = np.where(large > 0, small / np.where(large > 0, large, 1), 1)
    exact = large * (2 / np.pi) ** 0.5 * special.ellipe(1 - ratio**2)
    found = geometry.gaussian_width_ellipsoid(jnp.asarray(axes))
    np.testing.assert_allclose(found, exact, rtol=1e-11)
    many = geometry.gaussian_width_ellipsoid(jnp.full(10_000, 0.1))
    assert many == pytest.approx(0.1 * float(_numerics.chi_mean(1e4)), rel=1e-11)


def test_widths_of_ellipsoids_of_unlike_sizes_in_one_batch():
    axes = jnp.array([1.0, 2.0, 5.0])
    rows = jnp.stack([1e-30 * axes, axes, 1e30 * axes])
    found = geometry.gaussian_width_ellipsoid(rows) / jnp.array([1e-30, 1.0, 1e30])
    np.testing.assert_allclose(found, found[1], rtol=1e-5)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("dim", [1.0, 2.0, 30.0, 1e6, 1e15, 1e20])
def test_the_width_of_a_cross_polytope_is_the_mean_of_a_maximum(dim):
    exact = integrate.quad(lambda t: -np.expm1(dim * np.log1p(-min(tail(t), 1 - 1e-16))), 0, 14,
                           limit=200, points=[(2 * np.log(dim)) ** 0.5])[0]  # fmt: skip
    found = geometry.gaussian_width_cross_polytope(dim, 3.0)
    assert found == pytest.approx(3 * exact, rel=1e-7)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    ("dim", "l1"), [(100, 3.0), (1e4, 20.0), (1e12, 30.0), (50, 1e3), (9, 0.1)]
)
def test_the_width_of_a_cut_ball_is_the_least_over_thresholds(dim, l1):
    def bound(t):
        first, second = _numerics.excess_moments(jnp.asarray(t))
        del first
        return t * l1 + 2.0 * (dim * max(float(second), 0)) ** 0.5

    grid = np.linspace(0, 12.9, 60)
    near = grid[np.argmin([bound(t) for t in grid])]
    best = optimize.minimize_scalar(
        bound, bounds=(max(near - 0.3, 0), min(near + 0.3, 13)), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert geometry.gaussian_width_l1_l2_ball(dim, l1, 2.0) == pytest.approx(best.fun, rel=1e-6)


def test_a_cut_ball_of_no_size_has_no_width():
    assert geometry.gaussian_width_l1_l2_ball(100.0, 0.0, 1.0) == pytest.approx(0, abs=1e-6)
    assert geometry.gaussian_width_l1_l2_ball(100.0, 1.0, 0.0) == pytest.approx(0, abs=1e-6)


# --- Cones --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("dim", [2.0, 3.0, 12.0, 1e3, 1e6])
@pytest.mark.parametrize("angle", [0.0, 0.05, 0.7, 1.4, np.pi / 2])
def test_a_circular_cone_by_the_latitude_of_a_direction(dim, angle):
    reach = min(np.pi / 2, 12 / (dim - 1) ** 0.5)
    density = lambda t: np.cos(t) ** (dim - 2)  # noqa: E731

    def share(t):
        inside = np.sin(angle + t) ** 2 if t < np.pi / 2 - angle else 1.0
        return density(t) * inside if t > -angle else 0.0

    breaks = sorted({-reach, reach, *np.clip([-angle, np.pi / 2 - angle], -reach, reach)})
    pieces = [integrate.quad(share, *ends, epsabs=0)[0] for ends in itertools.pairwise(breaks)]
    total = integrate.quad(density, -reach, reach, epsabs=0)[0]
    found = geometry.statistical_dimension_circular_cone(dim, angle)
    assert found == pytest.approx(dim * sum(pieces) / total, rel=1e-9)
    if dim == 1e3 and 0.5 < angle < 1:
        near = geometry.statistical_dimension_circular_cone(dim, angle, method="asymptotic")
        assert near == pytest.approx(float(found), rel=1e-12)


def test_a_circular_cone_in_float32_where_the_cosine_rounds_to_one():
    for dim in (1e6, 1e8):
        found = geometry.statistical_dimension_circular_cone(jnp.float32(dim), jnp.float32(0.7))
        assert found == pytest.approx(dim * np.sin(0.7) ** 2 + np.cos(1.4), rel=1e-5)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(("dim", "nonzero"), [(100, 1), (100, 40), (1e6, 3), (10, 9.5)])
def test_the_descent_cone_is_the_least_over_thresholds(dim, nonzero):
    def bound(t):
        return nonzero * (1 + t**2) + (dim - nonzero) * excess(t, 2)

    best = optimize.minimize_scalar(bound, bounds=(0, 8), method="bounded")
    found = geometry.statistical_dimension_l1_descent_cone(dim, nonzero)
    assert found == pytest.approx(best.fun, rel=1e-6)


def test_cones_at_their_ends():
    assert geometry.statistical_dimension_l1_descent_cone(7.0, 0.0) == 0
    assert geometry.statistical_dimension_psd_cone(3.0) == 3
    assert geometry.statistical_dimension_psd_cone(3e19) == pytest.approx(2.25e38)
    # π/2 in float32 is above π/2.
    right = geometry.statistical_dimension_circular_cone(5.0, jnp.float32(np.pi / 2))
    assert right == pytest.approx(4.5)
    with pytest.raises(ValueError, match="num_nonzero / dim must lie in"):
        geometry.statistical_dimension_l1_descent_cone(5.0, 6.0)
    with pytest.raises(ValueError, match="half_widths must have at least one entry"):
        geometry.gaussian_width_box(jnp.zeros((2, 0)))


# --- Ellipsoids ---------------------------------------------------------------------------------


AXES = np.array([0.0, 0.1, 0.5, 1.0, 2.5, np.inf])


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("direction", [[1, 1, 1, 1, 1, 1], [3, -2, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]])
@pytest.mark.parametrize("unit", [1.0, 1e-200])
def test_the_cone_of_an_ellipsoid_from_any_direction(direction, unit):
    """δ = Σ r²/(φR² + r²) with φ from Σ p R²/(φR² + r²) = 1, p the squared cosines."""
    squares, distance = AXES**2, 3.0
    cosines = np.array(direction, float) ** 2 / np.sum(np.square(direction))
    deficit = lambda phi: np.sum(cosines * 9 / (phi * 9 + squares)) - 1  # noqa: E731
    phi = optimize.brentq(deficit, 1e-9, 1)
    shares = np.append(squares[:-1] / (phi * 9 + squares[:-1]), 1)
    found = geometry.statistical_dimension_ellipsoid_cone(
        jnp.asarray(AXES * unit), distance * unit, direction=jnp.array(direction) * 1e-3
    )
    assert found == pytest.approx(shares.sum(), rel=1e-10)
    if direction == [1] * 6:
        same = geometry.statistical_dimension_ellipsoid_cone(AXES, distance, direction="random")
        assert same == pytest.approx(float(found), rel=1e-12)
    thin = 1 + np.sum(squares[:-1] / (9 + squares[:-1]))
    assert geometry.statistical_dimension_ellipsoid_cone(AXES, distance) == pytest.approx(thin)


def test_directions_of_any_length_and_views_from_inside():
    axes = jnp.array([0.0, 0.0, 2.0, 3.0])
    seen = lambda d: geometry.statistical_dimension_ellipsoid_cone(axes, 1.0, direction=d)  # noqa: E731
    near = jnp.array([1.0, 2.0, 0.5, 1.0])
    for s in (1e-30, 1e30):
        assert seen(s * near) == pytest.approx(float(seen(near)), rel=1e-5)
    # From inside the ellipsoid's own plane its cone is that plane.
    assert seen(jnp.array([0.0, 0.0, 1.0, 1.0])) == 2
    for bad in ([0.0, 0, 0, 0], [jnp.inf, 1, 1, 1], [jnp.nan, 1, 1, 1]):
        with pytest.raises(ValueError, match="direction must be finite and not zero"):
            seen(jnp.array(bad))


@pytest.mark.usefixtures("wide")
def test_the_section_threshold_solves_its_equation():
    axes = np.array([0.0, 0.1, 0.5, 1.0, 2.5, 8.0])
    for distance in (0.9, 1.5, 3.0):
        squares = axes**2

        def deficit(rho, r=distance**2, squares=squares):
            return np.sum((r - squares) / (rho * r + (1 - rho) * squares))

        exact = optimize.brentq(deficit, 1e-9, 1) if deficit(1.0) < 0 else 1.0
        found = geometry.ellipsoid_section_threshold(axes, distance)
        assert found == pytest.approx(6 * exact, rel=1e-9)
