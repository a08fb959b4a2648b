import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from scipy import integrate, optimize, special, stats

from jaxlimit import geometry

DIM = 16
SIGNS = jnp.array([1.0, -1.0, 1.0] + [0.0] * (DIM - 3))
SEMI_AXES = jnp.geomspace(0.1, 2.0, DIM)
VIEWPOINT = jnp.full(DIM, 3.0 / DIM**0.5).at[::3].multiply(-1.0)


def rotation(dim=DIM, seed=3):
    return jnp.asarray(stats.ortho_group.rvs(dim, random_state=seed), jnp.float32)


def projections():
    basis = jax.random.normal(jax.random.key(5), (DIM, 5))
    return {
        "subspace": geometry.subspace_projection(basis),
        "orthant": optax.projections.projection_non_negative,
        "circular": geometry.circular_cone_projection(0.6),
        "psd": geometry.psd_cone_projection(4),
        "l1": geometry.l1_descent_cone_projection(SIGNS),
        "ellipsoid": geometry.ellipsoid_cone_projection(SEMI_AXES, VIEWPOINT),
    }


def project_rotated(q, project, point):
    return q @ project(q.T @ point)


# --- Monte Carlo against closed forms ---------------------------------------------------------


@pytest.mark.parametrize("name", projections())
def test_monte_carlo_meets_closed_form_polar_and_rotated(name):
    project = projections()[name]
    closed = {
        "subspace": 5.0,
        "orthant": geometry.statistical_dimension_orthant(DIM),
        "circular": geometry.statistical_dimension_circular_cone(DIM, 0.6),
        "psd": geometry.statistical_dimension_psd_cone(4),
    }
    sample = partial(geometry.statistical_dimension, dim=DIM, num_samples=4000)
    direct = sample(project, jax.random.key(0))
    polar = sample(geometry.polar_projection(project), jax.random.key(0))

    turned = sample(Partial(project_rotated, rotation(), Partial(project)), jax.random.key(1))
    error = np.hypot(direct.standard_error, turned.standard_error)
    assert abs(direct.value - turned.value) < 4 * error
    # Moreau holds sample by sample, so one key gives δ(C) + δ(C°) = D without Monte Carlo error.
    np.testing.assert_allclose(direct.value + polar.value, DIM, rtol=1e-4)
    if name in closed:
        assert abs(direct.value - closed[name]) < 4 * direct.standard_error


@pytest.mark.parametrize("name", ["l1", "ellipsoid"])
def test_projection_meets_moreau_conditions(name):
    """p = Π_C(x) iff p ∈ C, x-p ∈ C° and ⟨p, x-p⟩ = 0; both cones tested by their definitions."""
    points = np.asarray(jax.random.normal(jax.random.key(2), (200, DIM)))
    near = np.asarray(jax.vmap(projections()[name])(points), np.float64)
    rest = points - near
    assert abs((near * rest).sum(1)).max() < 1e-4
    signs, axes, eye = (np.asarray(x, np.float64) for x in (SIGNS, SEMI_AXES, VIEWPOINT))
    if name == "l1":
        in_cone = near @ signs + abs(near[:, signs == 0]).sum(1)
        scale = (rest * signs).max(1)
        outside = abs(rest - scale[:, None] * signs)[:, signs != 0].max(1)
        polar = np.maximum(outside, abs(rest[:, signs == 0]).max(1) - scale)
    else:
        # The line x₀ + t p meets the ellipsoid iff its quadratic in t has a real root, at t ≥ 0.
        a, b = (near**2 / axes**2).sum(1), (near * eye / axes**2).sum(1)
        c = (eye**2 / axes**2).sum() - 1
        hit = np.linalg.norm(near, axis=1) > 1e-3
        in_cone = 1 + b[hit] / np.sqrt(a * c)[hit]
        polar = np.linalg.norm(axes * rest, axis=1) - rest @ eye
        assert 20 < hit.sum() <= 200
    assert in_cone.max() < 1e-3
    assert polar.max() < 1e-4


# --- Circular cones -----------------------------------------------------------------------------


def circular_volumes(dim, angle):
    """Return the intrinsic volumes of a circular cone, by log-gammas in float64."""
    j = np.arange(1, dim)
    log_binomial = special.gammaln(dim / 2) - special.gammaln((j + 1) / 2)
    log_binomial -= special.gammaln((dim - j + 1) / 2)
    between = np.exp(log_binomial) * np.sin(angle) ** (j - 1) * np.cos(angle) ** (dim - j - 1) / 2
    last = special.betainc((dim - 1) / 2, 0.5, np.sin(angle) ** 2) / 2
    first = special.betainc((dim - 1) / 2, 0.5, np.cos(angle) ** 2) / 2
    return np.concatenate([[first], between, [last]])


def test_circular_cone_meets_its_intrinsic_volumes():
    dims, angles = np.array([2, 3, 8, 101]), np.array([1e-3, 0.3, np.pi / 4, 1.2, 1.57])
    expected = [[circular_volumes(d, a) @ np.arange(d + 1) for a in angles] for d in dims]
    with jax.enable_x64(True):
        exact = geometry.statistical_dimension_circular_cone(dims[:, None], angles)
    single = geometry.statistical_dimension_circular_cone(dims[:, None], jnp.float32(angles))
    np.testing.assert_allclose(exact, expected, rtol=1e-12)
    np.testing.assert_allclose(single, expected, rtol=2e-6)


def test_circular_cone_textbook_values():
    dims = jnp.array([2.0, 5.0, 1e3])
    half = partial(geometry.statistical_dimension_circular_cone, dims)
    np.testing.assert_allclose(half(0.0), 0.5, rtol=1e-6)  # a ray
    np.testing.assert_allclose(half(jnp.pi / 2), dims - 0.5, rtol=1e-6)  # a half-space
    np.testing.assert_allclose(half(jnp.pi / 4), dims / 2, rtol=1e-6)  # self-dual
    np.testing.assert_allclose(half(0.4) + half(jnp.pi / 2 - 0.4), dims, rtol=1e-6)  # polar
    np.testing.assert_allclose(half(0.4)[0], 0.5 + 2 * 0.4 / np.pi, rtol=1e-6)  # a plane wedge


def test_circular_cone_asymptotic_is_its_limit():
    angle = jnp.float32(0.7)
    gaps = [
        geometry.statistical_dimension_circular_cone(dim, angle)
        - geometry.statistical_dimension_circular_cone(dim, angle, method="asymptotic")
        for dim in (5, 20, 80)
    ]
    assert abs(gaps[0]) > abs(gaps[1]) > 10 * abs(gaps[2])
    assert abs(gaps[2]) < 1e-4


def test_psd_cone_up_to_the_end_of_the_dtype():
    got = geometry.statistical_dimension_psd_cone(jnp.float16(300))
    assert got.dtype == jnp.float16
    assert got == jnp.float16(22575)
    assert geometry.statistical_dimension_psd_cone(4095) == 4095 * 1024
    np.testing.assert_allclose(geometry.statistical_dimension_psd_cone(3e19), 2.25e38, rtol=1e-6)


# --- l1 descent cones -----------------------------------------------------------------------------


def test_l1_descent_cone_is_the_donoho_tanner_transition():
    """The weak transition in the parametric form of state evolution, which has no minimisation."""
    z = np.array([0.05, 0.2, 0.5, 0.8, 1.2, 2.0, 3.0, 4.0])
    excess = stats.norm.pdf(z) - z * stats.norm.sf(z)
    undersampling = 2 * stats.norm.pdf(z) / (z + 2 * excess)
    sparsity = undersampling * (1 - z * stats.norm.sf(z) / stats.norm.pdf(z))
    dim = 1e6
    got = geometry.statistical_dimension_l1_descent_cone(dim, jnp.float32(sparsity * dim)) / dim
    np.testing.assert_allclose(got, undersampling, rtol=2e-5)


@pytest.mark.parametrize(
    ("undersampling", "ratio"), [(0.1, 0.189), (0.25, 0.267), (0.5, 0.386), (0.9, 0.678)]
)
def test_l1_descent_cone_meets_independent_minimisation(undersampling, ratio):
    """Minimise J by scipy at the sparsities that the transition assigns to a few undersamplings."""
    density = undersampling * ratio

    def objective(t):
        tail = integrate.quad(lambda x: (x - t) ** 2 * stats.norm.pdf(x), t, np.inf)[0]
        return density * (1 + t**2) + (1 - density) * 2 * tail

    best = optimize.minimize_scalar(objective, bounds=(0, 6), method="bounded").fun
    got = geometry.statistical_dimension_l1_descent_cone(1000, 1000 * density) / 1000
    np.testing.assert_allclose(got, best, rtol=1e-5)
    np.testing.assert_allclose(got, undersampling, rtol=5e-3)  # the ratios have three digits


def test_l1_descent_cone_bounds_the_exact_cone():
    exact = geometry.statistical_dimension(
        projections()["l1"], jax.random.key(4), dim=DIM, num_samples=4000
    )
    bound = geometry.statistical_dimension_l1_descent_cone(DIM, 3)
    assert bound > exact.value - 4 * exact.standard_error
    assert bound < exact.value + 4 * exact.standard_error + 2 * (DIM / 3) ** 0.5


def test_l1_descent_cone_is_nearly_exact_at_large_dim():
    """The bound exceeds δ by at most 2√(D/s), 9 here; by Monte Carlo it is by less than one."""
    dim, nonzero = 1000, 50
    exact = geometry.statistical_dimension(
        geometry.l1_descent_cone_projection(jnp.zeros(dim).at[:nonzero].set(1.0)),
        jax.random.key(4),
        dim=dim,
        num_samples=1000,
    )
    bound = geometry.statistical_dimension_l1_descent_cone(dim, nonzero)
    assert abs(bound - exact.value) < 1 + 4 * exact.standard_error


def test_l1_descent_cone_ends_and_derivative():
    got = geometry.statistical_dimension_l1_descent_cone(100, jnp.array([0, 100]))
    np.testing.assert_allclose(got, [0, 100])
    with jax.enable_x64(True):
        slope = jax.grad(geometry.statistical_dimension_l1_descent_cone, argnums=1)(100.0, 10.0)
        ends = geometry.statistical_dimension_l1_descent_cone(100.0, jnp.array([9.99, 10.01]))
        np.testing.assert_allclose(slope, (ends[1] - ends[0]) / 0.02, rtol=1e-5)


# --- Ellipsoid cones ------------------------------------------------------------------------------

SPECTRA = {
    "ball": np.ones(120),
    "two levels": np.r_[np.full(96, 0.1), np.full(24, 3.0)],
    "ten decades flat": np.r_[np.full(12, 0.03), np.geomspace(0.1, 10, 108)],
}


@pytest.mark.parametrize("name", SPECTRA)
def test_ellipsoid_cone_formula_and_its_error(name):
    """Seen along the thinnest axis and along a random direction; the published formula is low."""
    axes, distance = SPECTRA[name].astype(np.float32), 2.0
    generic = np.random.default_rng(1).normal(size=len(axes))
    errors = {}
    for view, direction in {"thin": np.eye(len(axes))[0], "random": generic}.items():
        point = jnp.asarray(distance * direction / np.linalg.norm(direction), jnp.float32)
        exact = geometry.statistical_dimension(
            geometry.ellipsoid_cone_projection(axes, point),
            jax.random.key(0),
            dim=len(axes),
            num_samples=1500,
        )
        aimed = geometry.statistical_dimension_ellipsoid_cone(axes, distance, direction=point)
        published = geometry.statistical_dimension_ellipsoid_cone(axes, distance)
        assert abs(aimed - exact.value) < 1 + 4 * exact.standard_error
        assert published < exact.value + 4 * exact.standard_error
        errors[view] = float(exact.value - published)
    # A ball has no thin axis; the others have, and the published formula holds along it alone.
    assert errors["random"] > {"ball": 5, "two levels": 0.7, "ten decades flat": 4}[name]
    assert errors["thin"] > 5 if name == "ball" else errors["thin"] < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "exact", "formulas"),
    [
        (np.ones(200), (22.9, 23.0, 0.2), (20.0, 22.2)),
        (np.repeat([3.0, 0.1], [40, 160]), (20.7, 21.9, 0.3), (20.2, 21.3)),
        (np.r_[np.geomspace(10, 0.1, 180), np.full(20, 0.03)], (49.4, 55.2, 0.8), (48.9, 54.7)),
    ],
    ids=["ball", "two levels", "two decades"],
)
def test_ellipsoid_cone_has_the_table_of_its_docstring(axes, exact, formulas):
    """On directions other than those that the table was made with."""

    def sampled(direction, num_samples):
        point = jnp.asarray(3 * direction / np.linalg.norm(direction), jnp.float32)
        cone = geometry.ellipsoid_cone_projection(jnp.asarray(axes, jnp.float32), point)
        key = jax.random.key(1)
        return geometry.statistical_dimension(cone, key, dim=200, num_samples=num_samples).value

    thin, random, deviation = exact
    assert abs(sampled(np.eye(200)[-1], 20_000) - thin) < 0.05 + 5 * 0.08
    directions = np.random.default_rng(1).normal(size=(16, 200))
    of_random = np.mean([sampled(direction, 2000) for direction in directions])
    # Two means, over 16 and 32 directions, the error of sampling among their deviation.
    assert abs(of_random - random) < 0.05 + 4 * deviation * (1 / 16 + 1 / 32) ** 0.5
    for view, formula in zip(("thin", "random"), formulas, strict=True):
        got = geometry.statistical_dimension_ellipsoid_cone(axes, 3.0, direction=view)
        np.testing.assert_allclose(got, formula, atol=0.051)


def test_ellipsoid_cone_of_a_ball_is_circular():
    ball, distance = jnp.ones(5000), jnp.array([1.1, 2.0, 5.0])
    for direction in ("random", jnp.arange(5000.0)):
        got = geometry.statistical_dimension_ellipsoid_cone(ball, distance, direction=direction)
        exact = geometry.statistical_dimension_circular_cone(5000, jnp.arcsin(1 / distance))
        np.testing.assert_allclose(got, exact, atol=1.0)
    published = geometry.statistical_dimension_ellipsoid_cone(ball, distance)
    np.testing.assert_allclose(published, 5000 / (distance**2 + 1), rtol=1e-5)


def test_ellipsoid_cone_limits():
    semi_axes = jnp.array([0.0, 1.0, jnp.inf, jnp.inf])
    got = geometry.statistical_dimension_ellipsoid_cone(semi_axes, 3.0)
    np.testing.assert_allclose(got, 0.1 + 2, rtol=1e-6)
    inside = geometry.statistical_dimension_ellipsoid_cone(
        jnp.full(7, 2.0), 1.0, direction="random"
    )
    assert inside == 7
    within = geometry.statistical_dimension_ellipsoid_cone(
        jnp.array([0.0, 2.0, 2.0]), 1.0, direction=jnp.array([0.0, 1.0, 1.0])
    )
    assert within == 2
    flat = geometry.statistical_dimension_ellipsoid_cone(jnp.full(7, jnp.inf), 1.0)
    assert flat == 7
    point = geometry.statistical_dimension_ellipsoid_cone(jnp.zeros(7), 1.0, direction="random")
    np.testing.assert_allclose(point, 0, atol=1e-30)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_ellipsoid_cone_knows_no_unit(unit):
    """Squares of 1e30 are beyond float32, those of 1e-30 are 0."""
    cone = geometry.statistical_dimension_ellipsoid_cone
    axes, view, point = jnp.array([0.1, 1.0, 2.0]), jnp.array([1.0, 2.0, 2.0]), jnp.arange(3.0)
    aimed = partial(cone, axes, 1.5)
    slope = jax.grad(lambda view: aimed(direction=view))
    np.testing.assert_allclose(aimed(direction=unit * view), aimed(direction=view), rtol=1e-6)
    np.testing.assert_allclose(unit * slope(unit * view), slope(view), rtol=1e-5)
    scaled = geometry.ellipsoid_cone_projection(unit * axes, unit * view)
    expected = geometry.ellipsoid_cone_projection(axes, view)(point)
    np.testing.assert_allclose(scaled(point), expected, rtol=1e-5, atol=1e-6)


def test_ellipsoid_section_threshold_meets_exact_linear_algebra():
    """Nested random k-planes x₀ + V at distance R: the first on which the quadratic is below 1."""
    axes, distance, trials = np.r_[np.geomspace(0.1, 4, 60), np.full(12, 30.0)], 1.5, 100
    threshold = float(geometry.ellipsoid_section_threshold(axes, distance))
    hits = []
    rng = np.random.default_rng(0)
    for _ in range(trials):
        frame = np.linalg.qr(rng.normal(size=(72, 72)))[0]
        form = (frame / axes[:, None] ** 2).T @ frame
        factor = np.linalg.cholesky(form[1:, 1:])
        projected = np.linalg.solve(factor, form[1:, 0])
        minimum = distance**2 * (form[0, 0] - np.cumsum(projected**2))
        hits.append(1 + np.argmax(minimum <= 1))
    assert abs(np.mean(hits) - threshold) < 1 + 4 * np.std(hits) / trials**0.5
    published = 72 - geometry.statistical_dimension_ellipsoid_cone(axes, distance)
    assert abs(np.mean(hits) - published) > 3

    # The same k seen as a cone: a random point of the plane is at distance R / √(1 - k/D).
    share = threshold / 72
    seen = geometry.statistical_dimension_ellipsoid_cone(
        axes, distance / (1 - share) ** 0.5, direction="random"
    )
    np.testing.assert_allclose(72 - seen, threshold, rtol=1e-4)


def test_ellipsoid_section_threshold_ends():
    assert geometry.ellipsoid_section_threshold(jnp.full(9, 2.0), 1.0) == 0
    assert geometry.ellipsoid_section_threshold(jnp.full(9, 0.5), 1.0) == 9
    some_flat = jnp.array([0.0, jnp.inf] * 5)
    np.testing.assert_allclose(geometry.ellipsoid_section_threshold(some_flat, 1.0), 5, rtol=1e-6)


# --- Intrinsic volumes and the kinematic formula --------------------------------------------------


def test_intrinsic_volumes_meet_closed_forms():
    np.testing.assert_allclose(
        geometry.intrinsic_volumes_orthant(dim=9), stats.binom.pmf(np.arange(10), 9, 0.5), rtol=1e-5
    )
    angles = jnp.array([0.05, 0.8, 1.5])
    for dim in (2, 3, 40):
        got = geometry.intrinsic_volumes_circular_cone(angles, dim=dim)
        expected = np.stack([circular_volumes(dim, float(angle)) for angle in angles])
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=1e-9)
        # Gauss-Bonnet: the even and the odd volumes each sum to a half.
        np.testing.assert_allclose(got[:, ::2].sum(1), 0.5, rtol=1e-5)


def test_intrinsic_volumes_of_ray_and_half_space():
    ends = geometry.intrinsic_volumes_circular_cone(jnp.array([0.0, jnp.pi / 2]), dim=4)
    np.testing.assert_allclose(ends[0], [0.5, 0.5, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(ends[1], [0, 0, 0, 0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("dim", [2, 3, 4, 9])
def test_circular_cones_differentiate_at_any_angle(dim):
    functions = [
        partial(geometry.statistical_dimension_circular_cone, dim),
        partial(geometry.intrinsic_volumes_circular_cone, dim=dim),
    ]
    with jax.enable_x64(True):
        ends = ((0.0, 1e-7), (0.6, 1e-7), (jnp.pi / 2, -1e-7))
        for function, (angle, inward) in itertools.product(functions, ends):
            expected = (function(angle + inward) - function(angle)) / inward
            np.testing.assert_allclose(jax.jacrev(function)(angle), expected, atol=1e-5)


def test_intrinsic_volumes_stay_accurate_in_float32_at_large_dim():
    dim = 10**5
    orthant = geometry.intrinsic_volumes_orthant(dim=dim)
    index = np.arange(dim // 2 - 600, dim // 2 + 600)
    np.testing.assert_allclose(orthant[index], stats.binom.pmf(index, dim, 0.5), rtol=1e-4)
    circular = geometry.intrinsic_volumes_circular_cone(0.5, dim=dim)
    mean = np.asarray(circular, np.float64) @ np.arange(dim + 1)
    exact = geometry.statistical_dimension_circular_cone(dim, 0.5)
    np.testing.assert_allclose(mean, exact, rtol=1e-5)


def test_kinematic_probability_of_subspaces():
    volumes = geometry.intrinsic_volumes_subspace(jnp.arange(7), dim=6)
    got = geometry.kinematic_probability(volumes[:, None], volumes)
    np.testing.assert_array_equal(got, np.add.outer(np.arange(7), np.arange(7)) > 6)


@pytest.mark.parametrize("dim", [2, 7, 12])
def test_kinematic_probability_is_wendels(dim):
    """Wendel: a random k-plane through 0 meets an orthant with P{Binomial(D-1, ½) < k}."""
    subspaces = geometry.intrinsic_volumes_subspace(jnp.arange(dim + 1), dim=dim)
    got = geometry.kinematic_probability(subspaces, geometry.intrinsic_volumes_orthant(dim=dim))
    wendel = stats.binom.cdf(np.arange(dim + 1) - 1, dim - 1, 0.5)
    np.testing.assert_allclose(got, wendel, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dim", [3, 8])
def test_kinematic_probability_of_circular_cones(dim):
    """Two meet iff their axes are within the sum of the half-angles; a subspace, iff within one."""
    angles = jnp.array([0.1, 0.35, 0.6])
    volumes = geometry.intrinsic_volumes_circular_cone(angles, dim=dim)
    pairs = geometry.kinematic_probability(volumes[:, None], volumes)
    sums = np.add.outer(np.asarray(angles), np.asarray(angles))
    caps = special.betainc((dim - 1) / 2, 0.5, np.sin(sums) ** 2) / 2
    np.testing.assert_allclose(pairs, caps, rtol=1e-4)  # every sum is below π/2

    k = np.arange(1, dim)
    subspaces = geometry.intrinsic_volumes_subspace(k, dim=dim)
    got = geometry.kinematic_probability(subspaces, volumes[1])
    within = stats.beta.sf(np.cos(0.35) ** 2, k / 2, (dim - k) / 2)
    np.testing.assert_allclose(got, within, rtol=1e-4)


@pytest.mark.parametrize(
    ("dim", "method"), [*itertools.product([12, 200], ["refined", "theorem-1"])]
)
def test_kinematic_band_holds_the_exact_transition(dim, method):
    """By the exact formula, not by sampling: beyond the band the odds are at least as stated."""
    angles = jnp.array([0.02, 0.2, 0.5, 1.0, 1.4, 1.55])
    cones = geometry.intrinsic_volumes_circular_cone(angles, dim=dim)
    cones = jnp.concatenate([cones, geometry.intrinsic_volumes_orthant(dim=dim)[None]])
    delta = cones @ jnp.arange(dim + 1.0)
    k = np.arange(dim + 1)
    subspaces = geometry.intrinsic_volumes_subspace(k, dim=dim)
    hit = np.asarray(geometry.kinematic_probability(cones[:, None], subspaces))
    for confidence in (0.3, 0.9, 0.99):
        low, high = geometry.kinematic_band(delta[:, None], dim, confidence, method=method)
        assert (hit[(k <= low)] <= 1 - confidence + 1e-6).all()
        assert (hit[(k >= high)] >= confidence - 1e-6).all()
        assert ((low >= 0) & (low <= high) & (high <= dim)).all()


def test_refined_band_is_narrower_and_follows_the_small_side():
    dim = 10**9
    delta = np.array([1e2, 1e4, 5e8, 1e9 - 1e4])
    with jax.enable_x64(True):
        low, high = map(np.asarray, geometry.kinematic_band(delta, dim, 0.95))
        plain = np.asarray(geometry.kinematic_band(delta, dim, 0.95, method="theorem-1"))
    assert (high - low < plain[1] - plain[0]).all()
    width = 4 * np.sqrt(np.log(20) * np.minimum(delta, dim - delta))
    np.testing.assert_allclose((high - low)[1:], width[1:], rtol=0.02)


def test_kinematic_band_ends():
    low, high = geometry.kinematic_band(jnp.array([0.0, 50.0]), 50, 0.9)
    assert low[0] > 40
    assert high[0] == 50
    assert low[1] == 0
    assert high[1] < 10


def test_kinematic_band_differentiates_at_its_ends():
    """From inside the range, as there is nothing beyond."""
    with jax.enable_x64(True):
        for end, inward in ((0.0, 1e-6), (50.0, -1e-6)):
            band = np.array(geometry.kinematic_band(jnp.array([end, end + inward]), 50.0, 0.9))
            slopes = jax.jacrev(geometry.kinematic_band)(end, 50.0, 0.9)
            np.testing.assert_allclose(slopes, (band[:, 1] - band[:, 0]) / inward, atol=1e-4)


# --- Gaussian widths ------------------------------------------------------------------------------


def test_widths_meet_monte_carlo():
    half_widths = jnp.linspace(0.1, 2.0, DIM)
    pairs = {
        "ball": (geometry.gaussian_width_ball(DIM, 2.0), geometry.ball_support(2.0)),
        "box": (geometry.gaussian_width_box(half_widths), geometry.box_support(half_widths)),
        "ellipsoid": (
            geometry.gaussian_width_ellipsoid(half_widths),
            geometry.ellipsoid_support(half_widths),
        ),
        "cross-polytope": (
            geometry.gaussian_width_cross_polytope(DIM, 2.0),
            geometry.cross_polytope_support(2.0),
        ),
        "two points": (  # E max(⟨g,a⟩, ⟨g,b⟩) = ‖a-b‖ / √(2π)
            np.hypot(3, 4) / (2 * np.pi) ** 0.5,
            geometry.finite_set_support(
                jnp.zeros((2, DIM)).at[0, 0].set(3.0).at[1, 1].set(4.0) + 7.0
            ),
        ),
        "cross-polytope's corners": (
            geometry.gaussian_width_cross_polytope(DIM, 1.0),
            geometry.finite_set_support(jnp.concatenate([jnp.eye(DIM), -jnp.eye(DIM)])),
        ),
    }
    for name, (closed, support) in pairs.items():
        sampled = geometry.gaussian_width(support, jax.random.key(1), dim=DIM, num_samples=4000)
        assert abs(sampled.value - closed) < 4 * sampled.standard_error, name


def support_rotated(q, support, direction):
    return support(q.T @ direction)


def test_width_of_a_users_set_and_of_a_rotated_one():
    """The simplex has the width of its corners; a rotated box that of the box."""
    sample = partial(geometry.gaussian_width, dim=DIM, num_samples=4000)
    simplex = sample(jnp.max, jax.random.key(1))
    largest = integrate.quad(lambda t: t * DIM * stats.norm.pdf(t) * stats.norm.cdf(t) ** 15, -9, 9)
    assert abs(simplex.value - largest[0]) < 4 * simplex.standard_error
    half_widths = jnp.linspace(0.1, 2.0, DIM)
    support = Partial(support_rotated, rotation(), geometry.box_support(half_widths))
    turned = sample(support, jax.random.key(2))
    assert abs(turned.value - geometry.gaussian_width_box(half_widths)) < 4 * turned.standard_error


def test_l1_l2_ball_width_bounds_monte_carlo_closely():
    support = geometry.l1_l2_ball_support(4.0, 1.0)
    sampled = geometry.gaussian_width(support, jax.random.key(1), dim=1000, num_samples=500)
    bound = geometry.gaussian_width_l1_l2_ball(1000, 4.0, 1.0)
    assert bound > sampled.value - 4 * sampled.standard_error
    assert bound < sampled.value * 1.01 + 4 * sampled.standard_error


def test_l1_l2_ball_support_meets_a_constrained_solver():
    support = geometry.l1_l2_ball_support(1.4, 1.0)
    for seed in range(5):
        g = np.random.default_rng(seed).normal(size=4)
        # On the orthant of g the set is {x ≥ 0, Σx ≤ τ, ‖x‖ ≤ r} and the problem is smooth.
        solved = optimize.minimize(
            lambda x, g=g: -abs(g) @ x,
            np.full(4, 0.1),
            bounds=[(0, 1)] * 4,
            constraints=[
                {"type": "ineq", "fun": lambda x: 1.4 - x.sum()},
                {"type": "ineq", "fun": lambda x: 1.0 - x @ x},
            ],
            method="SLSQP",
        )
        np.testing.assert_allclose(support(jnp.float32(g)), -solved.fun, rtol=1e-4)


def test_l1_l2_ball_width_ends():
    wide = geometry.gaussian_width_l1_l2_ball(400, 1e3, 2.0)  # the l2 ball alone
    np.testing.assert_allclose(wide, 2 * 20.0, rtol=1e-5)
    assert geometry.gaussian_width_l1_l2_ball(400, 0.0, 2.0) < 1e-5
    assert geometry.gaussian_width_l1_l2_ball(400, 2.0, 0.0) < 1e-8
    point = geometry.l1_l2_ball_support(0.0, 2.0)
    assert geometry.gaussian_width(point, jax.random.key(0), dim=200, num_samples=9).value == 0


def test_ellipsoid_width_meets_elliptic_integral_and_ball():
    a, b = 3.0, 0.7
    ellipse = (2 / np.pi) ** 0.5 * a * special.ellipe(1 - (b / a) ** 2)
    with jax.enable_x64(True):
        got = geometry.gaussian_width_ellipsoid(jnp.array([b, a, 0.0]))
        balls = [geometry.gaussian_width_ellipsoid(jnp.ones(d)) for d in (1, 30, 5000)]
    np.testing.assert_allclose(got, ellipse, rtol=1e-12)
    means = [stats.chi.mean(d) for d in (1, 30, 5000)]
    np.testing.assert_allclose(balls, means, rtol=1e-10)
    huge = geometry.gaussian_width_ellipsoid(jnp.full(30, 1e25))  # r² would overflow
    np.testing.assert_allclose(huge, means[1] * 1e25, rtol=1e-5)
    assert geometry.gaussian_width_ellipsoid(jnp.zeros(3)) == 0


def test_cross_polytope_width_meets_quadrature():
    dims = np.array([1.0, 2.0, 10.0, 1e4, 1e9])
    expected = [
        integrate.quad(
            lambda t, d=d: -np.expm1(d * np.log1p(-2 * stats.norm.sf(t))), 1e-12, 13, limit=500
        )[0]
        for d in dims
    ]
    got = geometry.gaussian_width_cross_polytope(jnp.float32(dims), 1.0)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# --- Precision, transformations, Monte Carlo plumbing ---------------------------------------------


def test_ball_width_keeps_precision_from_0_to_a_billion():
    dims = np.array([1, 2, 3, 7, 50, 1e4, 1e9])
    with jax.enable_x64(True):
        double = np.asarray(geometry.gaussian_width_ball(dims, 1.0))
        following = np.asarray(geometry.gaussian_width_ball(dims + 1, 1.0))
    np.testing.assert_allclose(double[:4], stats.chi.mean(dims[:4]), rtol=1e-13)
    # Independent of any series: χ(D) χ(D+1) = D, and Var‖g‖ = D - χ(D)² rises to ½.
    np.testing.assert_allclose(double * following, dims, rtol=1e-14)
    np.testing.assert_allclose((dims - double**2)[-2:], 0.5, rtol=1e-4)
    single = geometry.gaussian_width_ball(jnp.float32(dims), 1.0)
    np.testing.assert_allclose(single, double, rtol=5e-7)
    assert geometry.gaussian_width_ball(0, 1.0) == 0


def closed_forms():
    """Every closed form of arrays as a function of one large dimension."""
    return {
        "subspace": geometry.statistical_dimension_subspace,
        "orthant": geometry.statistical_dimension_orthant,
        "psd": lambda d: geometry.statistical_dimension_psd_cone(d**0.5),
        "circular": lambda d: geometry.statistical_dimension_circular_cone(d, 0.3),
        "circular, asymptotic": lambda d: geometry.statistical_dimension_circular_cone(
            d, 0.3, method="asymptotic"
        ),
        "l1": lambda d: geometry.statistical_dimension_l1_descent_cone(d, d / 1e4),
        "ball": lambda d: geometry.gaussian_width_ball(d, 2.0),
        "cross-polytope": lambda d: geometry.gaussian_width_cross_polytope(d, 2.0),
        "l1-l2": lambda d: geometry.gaussian_width_l1_l2_ball(d, 50.0, 2.0),
        "ellipsoid": lambda d: geometry.statistical_dimension_ellipsoid_cone(
            d[..., None] ** jnp.linspace(-1, 1, 50, dtype=d.dtype), 3.0, direction="random"
        ),
        "ellipsoid, thin": lambda d: geometry.statistical_dimension_ellipsoid_cone(
            d[..., None] ** jnp.linspace(-1, 1, 50, dtype=d.dtype), 3.0
        ),
        "section": lambda d: geometry.ellipsoid_section_threshold(
            d[..., None] ** jnp.linspace(-1, 1, 50, dtype=d.dtype), 3.0
        ),
        "box": lambda d: geometry.gaussian_width_box(
            d[..., None] ** jnp.linspace(-1, 0.5, 50, dtype=d.dtype)
        ),
        "ellipsoid's width": lambda d: geometry.gaussian_width_ellipsoid(
            d[..., None] ** jnp.linspace(-1, 1, 50, dtype=d.dtype)
        ),
        "volumes of subspaces": lambda d: geometry.intrinsic_volumes_subspace(
            jnp.round(d**0.1), dim=8
        ),
        "volumes of circular cones": lambda d: geometry.intrinsic_volumes_circular_cone(
            d**-0.05, dim=4
        ),
        "kinematic formula": lambda d: geometry.kinematic_probability(
            geometry.intrinsic_volumes_circular_cone(d**-0.05, dim=4),
            geometry.intrinsic_volumes_circular_cone(d**-0.1, dim=4),
        ),
        "band": lambda d: jnp.stack(geometry.kinematic_band(d / 100, d, 0.9), -1),
        "band by Theorem I": lambda d: jnp.stack(
            geometry.kinematic_band(d / 2, d, 0.9, method="theorem-1"), -1
        ),
    }


@pytest.mark.parametrize("name", closed_forms())
def test_closed_forms_in_every_dtype_jitted_and_vmapped(name):
    function = closed_forms()[name]
    dims = np.array([1e5, 1e9])
    with jax.enable_x64(True):
        exact = np.asarray(function(jnp.asarray(dims)))
    single = jax.jit(jax.vmap(function))(jnp.asarray(dims, jnp.float32))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, rtol=3e-5)
    half = function(jnp.asarray(dims, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(half), exact, rtol=0.03)
    below = np.array([1e3, 3e4])  # float16 ends at 65,504
    with jax.enable_x64(True):
        exact = np.asarray(function(jnp.asarray(below)))
    half = function(jnp.asarray(below, jnp.float16))
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(np.float64(half), exact, rtol=0.01)


def test_ellipsoid_forms_differentiate_at_any_semi_axes():
    cone = geometry.statistical_dimension_ellipsoid_cone
    forms = [
        cone,
        partial(cone, direction="random"),
        lambda axes, distance: cone(axes, distance, direction=jnp.arange(axes.size)),
        geometry.ellipsoid_section_threshold,
    ]
    with jax.enable_x64(True):
        spectra = jnp.geomspace(0.1, 5.0, 30), jnp.array([0.1, 1, jnp.inf]), jnp.array([0.0, 1, 2])
        for form, axes, distance in itertools.product(forms, spectra, (1.0, 1.2)):
            by_axes, slope = jax.grad(form, (0, 1))(axes, distance)
            change = form(axes, distance + 1e-5) - form(axes, distance - 1e-5)
            np.testing.assert_allclose(slope, change / 2e-5, rtol=1e-6)
            # Functions of r/R alone, so that by Euler's theorem Σ r_i ∂/∂r_i + R ∂/∂R = 0.
            inner = (axes > 0) & jnp.isfinite(axes)
            np.testing.assert_array_equal(by_axes[~inner], 0)
            np.testing.assert_allclose(axes[inner] @ by_axes[inner], -distance * slope, rtol=1e-9)


def test_monte_carlo_runs_under_jit_and_over_keys():
    project = projections()["circular"]

    @jax.jit
    def estimate(keys, project):
        run = partial(geometry.statistical_dimension, dim=DIM, num_samples=50)
        return jax.vmap(lambda key: run(project, key))(keys)

    result = estimate(jax.random.split(jax.random.key(0), 40), project)
    exact = geometry.statistical_dimension_circular_cone(DIM, 0.6)
    covered = (result.lower <= exact) & (exact <= result.upper)
    assert covered.sum() >= 33  # 95 % intervals, 40 of them: fewer has odds of 1 in 1000


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_monte_carlo_in_half_precision(dtype):
    """‖g‖² passes the largest float16 at this dimension."""
    orthant = geometry.statistical_dimension(
        jax.nn.relu, jax.random.key(0), dim=100_000, num_samples=8, batch_size=8, dtype=dtype
    )
    assert abs(orthant.value - 50_000) < 5 * orthant.standard_error


# --- Bad input ------------------------------------------------------------------------------------


def bad_calls():
    ones = jnp.ones(3)
    volumes = geometry.intrinsic_volumes_orthant(dim=3)
    dimension = partial(geometry.statistical_dimension, key=jax.random.key(0), dim=8, num_samples=9)
    width = partial(geometry.gaussian_width, key=jax.random.key(0), dim=8, num_samples=9)
    circular = geometry.statistical_dimension_circular_cone
    ellipsoid = geometry.statistical_dimension_ellipsoid_cone
    return {
        "k": lambda: geometry.statistical_dimension_subspace(-1),
        "n must": lambda: geometry.statistical_dimension_psd_cone(-1),
        "dim must": lambda: circular(1, 0.3),
        "half_angle": lambda: circular(5, 1.6),
        "half_angle must": lambda: circular(5, jnp.nan),
        "method must be one of": lambda: circular(5, 0.3, method="fast"),
        "num_nonzero": lambda: geometry.statistical_dimension_l1_descent_cone(5, 6),
        "semi_axes": lambda: ellipsoid(-ones, 1.0),
        "semi_axes must have": lambda: ellipsoid(1.0, 1.0),
        "distance": lambda: ellipsoid(ones, 0.0),
        "direction must be one of": lambda: ellipsoid(ones, 1.0, direction="up"),
        "direction must be 'thin', 'random' or a vector with 3": lambda: ellipsoid(
            ones, 1.0, direction=jnp.ones(2)
        ),
        "direction must be finite": lambda: ellipsoid(ones, 1.0, direction=0 * ones),
        "viewpoint must lie outside": lambda: geometry.ellipsoid_cone_projection(ones, 0.5 * ones),
        "semi_axes and viewpoint": lambda: geometry.ellipsoid_cone_projection(ones, jnp.ones(2)),
        "signs": lambda: geometry.l1_descent_cone_projection(0 * ones),
        "basis": lambda: geometry.subspace_projection(jnp.ones((2, 3))),
        "confidence": lambda: geometry.kinematic_band(1.0, 3, 1.0),
        "confidence must": lambda: geometry.kinematic_band(1.0, 3, 0.0),
        "statistical_dimension": lambda: geometry.kinematic_band(4.0, 3, 0.9),
        "intrinsic_volumes_a": lambda: geometry.kinematic_probability(ones, ones / 3),
        "intrinsic_volumes_a and": lambda: geometry.kinematic_probability(volumes, ones / 3),
        "radius": lambda: geometry.gaussian_width_ball(3, -1.0),
        "half_widths": lambda: geometry.gaussian_width_box(-ones),
        "semi_axes must lie": lambda: geometry.gaussian_width_ellipsoid(jnp.inf * ones),
        "l1_radius": lambda: geometry.gaussian_width_l1_l2_ball(3, -1.0, 1.0),
        "points": lambda: geometry.finite_set_support(ones),
        "k must be an integer, got 1.5": lambda: geometry.intrinsic_volumes_subspace(1.5, dim=3),
        r"point must be a vector with 16 entries, got shape \(9,\)": lambda: dimension(
            geometry.psd_cone_projection(4), dim=9
        ),
        r"point must be a vector with 16 entries, got shape \(15,\)": lambda: dimension(
            geometry.psd_cone_projection(4), dim=15
        ),
        "point must be a vector with 5 entries": lambda: dimension(
            geometry.subspace_projection(jnp.eye(5)[:, :2])
        ),
        "point must be a vector with 3 entries": lambda: dimension(
            geometry.ellipsoid_cone_projection(ones, 2 * ones)
        ),
        "point must be a vector with 1 entries": lambda: dimension(
            geometry.l1_descent_cone_projection(jnp.ones(1))
        ),
        "g must be a vector with 1 entries": lambda: width(geometry.box_support(jnp.ones(1))),
        "g must be a vector with 2 entries": lambda: width(geometry.ellipsoid_support(jnp.ones(2))),
        "g must be a vector with 3 entries": lambda: width(geometry.finite_set_support(jnp.eye(3))),
        "basis must have independent columns, hence rank 2, got rank 1": lambda: (
            geometry.subspace_projection(jnp.stack([VIEWPOINT, VIEWPOINT / 3], 1))
        ),
        "basis must have independent columns, hence rank 3, got rank 2": lambda: (
            geometry.subspace_projection(jnp.eye(4)[:, :3].at[2, 2].set(0.0))
        ),
        r"dim must lie in \[2, .*\], got inf": lambda: circular(jnp.inf, 0.3),
        r"dim must lie in \[0, .*\], got inf": lambda: geometry.gaussian_width_ball(jnp.inf, 1.0),
        r"dim must lie in \[1, .*\], got inf": lambda: geometry.gaussian_width_cross_polytope(
            jnp.inf, 1.0
        ),
        "dim must lie in .*, got inf": lambda: geometry.kinematic_band(1.0, jnp.inf, 0.9),
        "l1_radius must lie in .*, got inf": lambda: geometry.gaussian_width_l1_l2_ball(
            100, jnp.inf, 1.0
        ),
        "l2_radius must lie in .*, got inf": lambda: geometry.gaussian_width_l1_l2_ball(
            100, 2.0, jnp.inf
        ),
        "l2_radius must lie": lambda: geometry.l1_l2_ball_support(2.0, jnp.inf),
        "distance must lie in .*, got inf": lambda: ellipsoid(jnp.array([1.0, jnp.inf]), jnp.inf),
        r"half_widths must have .* got shape \(\)": lambda: geometry.gaussian_width_box(2.0),
        r"semi_axes must have .* got shape \(\)": lambda: geometry.gaussian_width_ellipsoid(2.0),
        "half_widths must be a vector": lambda: geometry.box_support(2.0),
        "semi_axes must be a vector": lambda: geometry.ellipsoid_support(jnp.ones((2, 2))),
        "num_samples": lambda: dimension(jax.nn.relu, num_samples=0),
        "project must be idempotent": lambda: dimension(lambda x: x / 2),
        "project must be positively": lambda: dimension(optax.projections.projection_l2_ball),
        "project must be positively homogeneous": lambda: dimension(
            partial(optax.projections.projection_box, lower=-30.0, upper=30.0)
        ),
        # Onto the two largest entries: idempotent and homogeneous, onto no convex cone.
        "project must be the nearest-point": lambda: dimension(
            lambda x: jnp.where(abs(x) >= jnp.sort(abs(x))[-2], x, 0)
        ),
        "project must map shape": lambda: dimension(lambda x: x[1:]),
        "project must return finite": lambda: dimension(lambda x: x * jnp.nan),
        "support must be sublinear: positively": lambda: width(lambda g: g @ g),
        "support must be sublinear: support": lambda: width(lambda g: -jnp.linalg.norm(g)),
        # Homogeneous, and subadditive at nearly all pairs of independent dense vectors.
        r"support must be sublinear: support\(g \+": lambda: width(
            lambda g: jnp.median(abs(g)), dim=200
        ),
        r"support must be sublinear: support\(g \+ h": lambda: width(
            lambda g: jnp.sort(abs(g))[-2]
        ),
        r"support must be sublinear: support\(g \+ h\)": lambda: width(
            lambda g: jnp.sort(abs(g))[-2], dim=200
        ),
        r"support must be sublinear: support\(g \+ h\) <=": lambda: width(
            lambda g: jnp.sum(jnp.sqrt(abs(g))) ** 2
        ),
        "support must map": lambda: width(lambda g: g),
        "support must return finite": lambda: width(lambda g: jnp.inf * jnp.sum(g)),
    }


@pytest.mark.parametrize("message", bad_calls())
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        bad_calls()[message]()


def test_bases_of_unlike_lengths_are_independent():
    """The longer column is ten million times the shorter, and neither drowns the other."""
    basis = jnp.array([[1e-3, 0.0], [0.0, 1e4], [0.0, 1e4]])
    got = geometry.subspace_projection(basis)(jnp.array([1.0, 2.0, 0.0]))
    np.testing.assert_allclose(got, [1, 1, 1], rtol=1e-6)


def test_oblique_projection_is_refused():
    """Idempotent, linear and onto a subspace, yet not to the nearest point."""
    oblique = jnp.eye(8).at[0, 0].set(0).at[1, 0].set(1)
    with pytest.raises(ValueError, match="nearest-point"):
        geometry.statistical_dimension(
            lambda x: oblique @ x, jax.random.key(0), dim=8, num_samples=9
        )


def test_the_band_of_theorem_1_is_that_of_the_paper():
    """C ∩ L = {0} with probability ≥ 1 - η at δ + k ≤ D - √(8 log(4/η)) √D; the 4 counts."""
    dim, delta = 10_000, 3_000.0
    for confidence in (0.5, 0.95, 0.999):
        half_width = math.sqrt(8 * math.log(4 / (1 - confidence)) * dim)
        low, high = geometry.kinematic_band(delta, dim, confidence, method="theorem-1")
        np.testing.assert_allclose([low, high], [7_000 - half_width, 7_000 + half_width], rtol=1e-5)


@pytest.mark.parametrize("confidence", [0.6, 0.99])
@pytest.mark.parametrize("share", [0.002, 0.1, 0.5, 0.9, 0.998])
def test_the_refined_band_is_its_formula(share, confidence):
    dim, ell = 2_000, math.log(1 / (1 - confidence))
    delta = share * dim
    polar = dim - delta

    def bernstein(mean):
        return 2 / 3 * ell + math.sqrt((2 / 3 * ell) ** 2 + 4 * mean * ell)

    below = min(bernstein(delta), 2 * math.sqrt(polar * ell))
    above = min(bernstein(polar), 2 * math.sqrt(delta * ell))
    expected = [max(polar - below, 0), min(polar + above, dim)]
    found = geometry.kinematic_band(delta, dim, confidence)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-2)
