"""Limits against brute force over every k, dense linear algebra, Monte Carlo and differences."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import optimize
from threadpoolctl import threadpool_limits

from jaxlimit import limits, spectrum
from jaxlimit._core import magnitudes
from jaxlimit._core.estimate import Estimate
from jaxlimit.spectrum import SpectralMeasure, exact_measure

NUM, DIM = 2000, 12
KEY = jax.random.key(0)


def curvature(eigenvalues, negative):
    return np.abs(eigenvalues) if negative == "abs" else np.maximum(eigenvalues, 0)


def squares_removed(weights):
    """R² for k = 0 … D, by sorting."""
    smallest_first = np.sort(np.abs(np.asarray(weights, np.float64)), axis=-1) ** 2
    zero = np.zeros((*smallest_first.shape[:-1], 1))
    return np.concatenate([zero, np.cumsum(smallest_first, -1)], -1)[..., ::-1]


def excesses(eigenvalues, weights, epsilon, negative="abs", offset=None):
    """Demand less offer for every k, [..., D + 1], in float64 and from the definitions."""
    size = curvature(np.asarray(eigenvalues, np.float64), negative)[..., None, :]
    dim = size.shape[-1]
    ratio = np.arange(dim + 1) / dim
    with np.errstate(divide="ignore", invalid="ignore"):
        c = 2 * np.asarray(epsilon, np.float64)[..., None] / squares_removed(weights)
        if offset is None:
            shares = np.where(size > 0, size / (size + c[..., None]), 0)
            return shares.mean(-1) - ratio
        gamma = c * (1 - ratio) / ratio if offset == "perpendicular" else c / ratio
        shares = np.where(size > 0, size / (size + gamma[..., None]), 0)
        excess = shares.mean(-1) - ratio
    excess[..., 0] = (size / c[..., :1, None]).mean(-1)[..., 0] - 1
    excess[..., -1] = -1
    return excess


def fewest(excess):
    return np.argmax(excess <= 0, axis=-1)


@pytest.fixture(scope="module")
def cases():
    """Spectra with zeros and negative values, weights with many ties and zeros, ε of all sizes."""
    rng = np.random.default_rng(0)
    eigenvalues = rng.standard_normal((NUM, DIM)) * np.exp(2 * rng.standard_normal((NUM, DIM)))
    eigenvalues[rng.random((NUM, DIM)) < 0.2] = 0
    weights = np.where(
        rng.random((NUM, 1)) < 0.5,
        rng.integers(-2, 3, (NUM, DIM)),
        rng.standard_normal((NUM, DIM)),
    )
    epsilon = np.exp(rng.uniform(-6, 5, NUM))
    return tuple(np.asarray(x, np.float32) for x in (eigenvalues, weights, epsilon))


def solve_all(cases, negative="abs", offset=None):
    def one(eigenvalues, weights, epsilon):
        measure = exact_measure(eigenvalues)
        if offset is None:
            return limits.pruning_limit(measure, weights, epsilon, negative=negative)
        return limits.random_subspace_threshold(
            measure, weights, epsilon, offset=offset, negative=negative
        )

    return jax.device_get(jax.jit(jax.vmap(one))(*cases))


@pytest.mark.parametrize(
    ("negative", "offset"),
    [("abs", None), ("clip", None), ("abs", "perpendicular"), ("clip", "random")],
)
def test_limit_is_the_brute_force_over_every_k(cases, negative, offset):
    eigenvalues, weights, epsilon = cases
    excess = excesses(eigenvalues, weights, epsilon, negative, offset)
    # One crossing: brute force and bisection ask the same question.
    assert (np.diff((excess > 0).astype(int), axis=-1) <= 0).all()
    expected, limit = fewest(excess), solve_all(cases, negative, offset)
    wrong = limit.num_kept != expected
    # Float32 may only err where an excess is 0 but for rounding.
    assert wrong.mean() < 0.01
    assert (np.abs(excess[wrong]).min(-1) < 1e-6).all()
    right = ~wrong
    removed = np.take_along_axis(squares_removed(weights), expected[:, None], 1)[:, 0]
    np.testing.assert_allclose(limit.radius[right], np.sqrt(removed[right]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(limit.ratio, limit.num_kept / DIM, rtol=1e-6)
    ordered = -np.sort(-np.abs(weights), axis=1)
    smallest = np.take_along_axis(ordered, np.maximum(expected - 1, 0)[:, None], 1)[:, 0]
    np.testing.assert_array_equal(limit.threshold[right], smallest[right])
    assert limit.lower == pytest.approx(limit.ratio)
    assert limit.upper == pytest.approx(limit.ratio)
    assert (limit.standard_error == 0).all()


def test_bounds_are_ordered_on_thousands_of_spectra(cases):
    eigenvalues, _, epsilon = cases
    radii = np.geomspace(1e-3, 1e3, 16, dtype=np.float32)
    for negative in limits.bounds.NEGATIVE:
        bound = jax.jit(
            jax.vmap(
                lambda x, e, n=negative: (
                    limits.lower_bound(exact_measure(x), radii, e, negative=n).value
                )
            )
        )(eigenvalues, epsilon)
        trace = curvature(eigenvalues, negative).sum(1)
        above = limits.trace_bound(trace[:, None], radii, epsilon[:, None], dim=DIM)
        assert (bound <= above + 1e-6).all()
        assert (bound >= 0).all()
        assert (np.diff(bound, axis=1) >= -1e-6).all()  # grows with R, so falls with ε: c = 2ε/R²
        c = 2 * epsilon[:, None].astype(np.float64) / radii.astype(np.float64) ** 2
        size = curvature(eigenvalues, negative).astype(np.float64)[:, None]
        expected = (size / (size + c[..., None])).mean(-1)
        np.testing.assert_allclose(bound, expected, rtol=1e-5, atol=1e-7)


def test_trace_itself_is_no_bound_for_an_indefinite_hessian():
    eigenvalues = np.array([-1.0, 1.001], np.float32)
    bound = limits.lower_bound(exact_measure(eigenvalues), 1.0, 0.1).value
    assert limits.trace_bound(eigenvalues.sum(), 1.0, 0.1, dim=2) < bound
    assert limits.trace_bound(np.abs(eigenvalues).sum(), 1.0, 0.1, dim=2) >= bound


def test_lower_bound_stays_below_upper_bound():
    rng = np.random.default_rng(1)
    num, dim, kept = 1000, 8, 3
    square = rng.standard_normal((num, dim, dim)) * np.exp(rng.standard_normal((num, 1, dim)))
    definite = np.einsum("nij,nkj->nik", square, square)
    indefinite = square + np.swapaxes(square, 1, 2)
    # A rotation is as good as a mask: the matrices have no preferred axes but by their scale.
    epsilon = np.exp(rng.uniform(-3, 3, num)).astype(np.float32)

    def both(eigenvalues, removed, epsilon, negative):
        settings = {"negative": negative}
        low = limits.lower_bound(exact_measure(eigenvalues), 1.0, epsilon, **settings)
        high = limits.upper_bound(exact_measure(removed), 1.0, epsilon, dim=dim, **settings)
        return low.value, high.value

    run = jax.jit(jax.vmap(both, (0, 0, 0, None)), static_argnums=3)
    for matrices, negative in ((definite, "abs"), (definite, "clip"), (indefinite, "clip")):
        spectra = np.linalg.eigvalsh(matrices), np.linalg.eigvalsh(matrices[:, kept:, kept:])
        low, high = run(*(x.astype(np.float32) for x in spectra), epsilon, negative)
        assert (low <= high + 1e-6).all()
        assert (high <= 1 + 1e-6).all()


def test_absolute_eigenvalues_break_the_order():
    # H = [[0, 1], [1, 0]], c = 0.1: the submatrix of one weight is 0, and its bound falls short.
    low = limits.lower_bound(exact_measure(jnp.array([-1.0, 1.0])), 1.0, 0.05)
    high = limits.upper_bound(exact_measure(jnp.array([0.0])), 1.0, 0.05, dim=2)
    np.testing.assert_allclose([low.value, high.value], [1 / 1.1, 0.5], rtol=1e-6)


def test_gap_is_the_difference_of_the_bounds_at_the_fixed_point():
    rng = np.random.default_rng(2)
    square = rng.standard_normal((30, 30))
    matrix, kept, epsilon = square @ square.T / 30, 9, 0.2
    full, part = np.linalg.eigvalsh(matrix), np.linalg.eigvalsh(matrix[kept:, kept:])

    def low(radius):
        c = 2 * epsilon / radius**2
        return np.mean(full / (full + c))

    radius = optimize.brentq(lambda r: low(r) - kept / 30, 1e-3, 1e3)
    c = 2 * epsilon / radius**2
    high = 1 - np.sum(c / (part + c)) / 30
    gap = limits.gap(exact_measure(part.astype(np.float32)), radius, epsilon, dim=30)
    assert gap.value == pytest.approx(high - low(radius), rel=1e-5)


floats = st.floats(-100, 100, width=32)
vectors = hnp.arrays(np.float32, 6, elements=st.one_of(floats, st.sampled_from([0.0, 1.0, -1.0])))


@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
@hypothesis.given(vectors, vectors, st.floats(0, 1e4, width=32))
@hypothesis.example(np.float32([1e-25, 0, 0, 0, 0, 0]), np.ones(6, np.float32), 0.0)
@hypothesis.example(np.float32([1e-25, 1, 0, 0, 0, 0]), np.ones(6, np.float32), 1e-30)
@hypothesis.example(np.zeros(6, np.float32), np.full(6, 1e-27, np.float32), 0.0)
def test_limit_on_any_spectrum(eigenvalues, weights, epsilon):
    limit = limits.pruning_limit(exact_measure(eigenvalues), weights, epsilon)
    excess = excesses(eigenvalues, weights, np.float64(epsilon)) if epsilon > 0 else None
    kept = int(limit.num_kept)
    assert all(np.isfinite(x) for x in limit)
    if excess is not None:
        assert excess[kept] <= 1e-5
        assert kept == 0 or excess[kept - 1] > -1e-5
    more_tolerant = limits.pruning_limit(exact_measure(eigenvalues), weights, 2 * epsilon)
    assert more_tolerant.num_kept <= kept
    larger = limits.pruning_limit(exact_measure(eigenvalues), 2 * weights, epsilon)
    assert larger.num_kept >= kept


entries = st.one_of(floats, st.sampled_from([0.0, 1.0, -1.0]))
tolerances = st.floats(2.0**-10, 2.0**10, width=32)
many = hypothesis.settings(max_examples=100, deadline=None, derandomize=True)


RADII = np.geomspace(1e-3, 1e3, 8)


@jax.jit
def bounds_of(spectra, removed, epsilons):
    """[spectrum, negative, radius]: ρ_L, the trace bound, and ρ_U where `removed` is given."""
    radii, dim = jnp.asarray(RADII, jnp.float32), spectra.shape[-1]

    def one(eigenvalues, removed, epsilon):
        at = (radii, epsilon)
        rows = []
        for negative in limits.bounds.NEGATIVE:
            low = limits.lower_bound(exact_measure(eigenvalues), *at, negative=negative).value
            trace = limits.bounds.curvature_size(eigenvalues, negative).sum()
            high = limits.upper_bound(exact_measure(removed), *at, dim=dim, negative=negative)
            rows.append((low, limits.trace_bound(trace, *at, dim=dim), high.value))
        return jax.tree.map(lambda *x: jnp.stack(x), *rows)

    return jax.vmap(one)(spectra, removed, epsilons)


@many
@hypothesis.given(hnp.arrays(np.float32, (32, 6), elements=entries), tolerances)
def test_lower_bound_is_monotone_on_thousands_of_any_spectra(spectra, epsilon):
    epsilons = np.full(32, epsilon, np.float32)
    low, trace, _ = bounds_of(spectra, spectra, epsilons)
    assert ((low >= 0) & (low <= trace + 1e-6) & (trace <= 1)).all()
    assert (np.diff(low, axis=-1) >= -1e-6).all()  # in R
    assert (bounds_of(spectra, spectra, 2 * epsilons)[0] <= low + 1e-6).all()
    steeper = spectra * (1 + np.arange(6, dtype=np.float32))  # each |λ| as large or larger
    assert (bounds_of(steeper, steeper, epsilons)[0] >= low - 1e-6).all()


@many
@hypothesis.given(
    hnp.arrays(np.float64, (32, 5, 5), elements=entries), st.integers(1, 4), tolerances
)
def test_bounds_are_in_order_on_thousands_of_any_matrices(square, kept, epsilon):
    """ρ_L ≤ ρ_U ≤ 1: for positive semi-definite matrices and, clipped, for symmetric ones."""
    for matrices, conventions in (
        (square @ np.swapaxes(square, 1, 2), slice(None)),
        (square + np.swapaxes(square, 1, 2), slice(1, None)),
    ):
        spectra = np.linalg.eigvalsh(matrices), np.linalg.eigvalsh(matrices[:, kept:, kept:])
        low, _, high = bounds_of(*map(np.float32, spectra), np.full(32, epsilon, np.float32))
        # Where c is as small as the error of an eigenvalue, 0 counts for something in either bound.
        errors = 5 * np.finfo(float).eps * np.linalg.norm(matrices, axis=(1, 2))[:, None]
        rounding = errors / (errors + 2 * epsilon / RADII**2)
        assert (low <= high + 1e-5 + 2 * rounding[:, None])[:, conventions].all()
        assert (high <= 1 + 1e-6).all()


def kept(eigenvalues, weights, epsilon):
    measure = exact_measure(jnp.asarray(eigenvalues, jnp.float32))
    return int(limits.pruning_limit(measure, jnp.asarray(weights, jnp.float32), epsilon).num_kept)


def test_edges_of_the_limit():
    ones = np.ones(6)
    assert kept(0 * ones, ones, 1.0) == 0  # no curvature: everything may go
    assert kept(ones, ones, np.inf) == 0  # everything is tolerated
    assert kept(ones, ones, 1e30) == 1  # nearly so: ρ_L(‖w‖) > 0, if barely
    assert kept(ones, 0 * ones, 0.0) == 0  # nothing is left to remove
    assert kept(ones, ones, 0.0) == 6  # nothing is tolerated
    assert kept([1, 1, 0, 0, 0, 0], ones, 0.0) == 2  # but flat directions go
    assert kept(ones, [3, 2, 1, 0, 0, 0], 0.0) == 3  # and weights that are 0 already
    assert kept([2.0], [1.0], 0.1) == 1  # D = 1 keeps or removes: ρ_L(R = 1) = 2/2.2 > 0
    assert kept([2.0], [1.0], np.inf) == 0


@pytest.mark.parametrize("offset", limits.prediction.OFFSETS)
def test_corrected_threshold_lets_all_go_where_a_random_point_is_inside(offset):
    measure, weights = exact_measure(jnp.array([1.0, 2.0, 3.0])), jnp.ones(3)
    for epsilon, inside in ((3.01, True), (2.99, False)):  # ½‖w‖² tr H/D = 3
        limit = limits.random_subspace_threshold(measure, weights, epsilon, offset=offset)
        assert (limit.num_kept == 0) == inside


def test_bounds_beyond_the_weights_and_at_the_ends():
    measure = exact_measure(jnp.array([0.0, 0.0, 0.0, 5.0]))
    radii = jnp.array([0.0, 1e-30, 1e30, jnp.inf])
    np.testing.assert_array_equal(limits.lower_bound(measure, radii, 1.0).value, [0, 0, 0.25, 0.25])
    np.testing.assert_array_equal(
        limits.lower_bound(measure, jnp.array([0.0, 1.0, jnp.inf]), jnp.inf).value, 0
    )
    np.testing.assert_array_equal(limits.lower_bound(measure, 1.0, 0.0).value, 0.25)
    assert limits.lower_bound(measure, jnp.ones((2, 1)), jnp.ones(3)).value.shape == (2, 3)
    assert limits.upper_bound(measure, 0.0, 1.0, dim=8).value == 0.5
    assert limits.trace_bound(0.0, 1.0, 0.0, dim=4) == 0


def random_sections(eigenvalues, rng, num):
    """Squared distances, per ½R², of random k-planes from the minimum of ½xᵀHx, for every k.

    With H = LLᵀ in a random orthonormal frame, the least value over x₀ + span(first k vectors) is
    ½ Σ_{j > k} (Lᵀx₀)_j². x₀ is the last frame vector (perpendicular) or a random unit vector.
    Returns [num, D] each, for k = 0 … D - 1.
    """
    dim, results = len(eigenvalues), []
    for _ in range(num):
        frame, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
        factor = np.linalg.cholesky(frame.T @ (eigenvalues[:, None] * frame))
        point = rng.standard_normal(dim)
        parts = (factor[-1], factor.T @ (point / np.linalg.norm(point)))
        results.append([np.cumsum(part[::-1] ** 2)[::-1] for part in parts])
    return np.swapaxes(results, 0, 1)


def test_corrected_threshold_meets_exact_linear_algebra_and_the_published_does_not():
    rng = np.random.default_rng(3)
    dim, epsilon = 400, 0.5
    eigenvalues = np.linspace(0.1, 3, dim)
    weights = rng.standard_normal(dim).astype(np.float32) / 10
    measure = exact_measure(eigenvalues.astype(np.float32))
    published = limits.pruning_limit(measure, weights, epsilon)
    with threadpool_limits(1):  # on a busy machine the threads of a small BLAS call spin in vain
        rises = random_sections(eigenvalues, rng, 30)
    half_squares = squares_removed(weights)[:-1] / 2
    for offset, rise in zip(limits.prediction.OFFSETS, rises, strict=True):
        threshold = limits.random_subspace_threshold(measure, weights, epsilon, offset=offset)
        # At each k the plane is at the distance R(k/D) of the weights themselves.
        reaches = np.argmax(rise * half_squares <= epsilon, axis=1)
        width = reaches.std()
        # The mean of 30 draws is known to width/√30.
        assert abs(float(threshold.num_kept) - reaches.mean()) < 0.5 * width
        assert abs(float(published.num_kept) - reaches.mean()) > 5 * width


def smooth_problem(dim=400_000):
    """Weights with a smooth distribution, and a spectrum of four values known exactly."""
    weights = jnp.asarray(np.sinh(np.linspace(-2, 3, dim)) / 100, jnp.float32)
    nodes, shares = jnp.array([[-0.02, 0.1, 1.0, 9.0]]), jnp.array([[0.1, 0.5, 0.3, 0.1]])
    return SpectralMeasure(nodes, shares, dim=dim, exact=True), weights, 20.0


@pytest.mark.parametrize("offset", [None, "perpendicular", "random"])
def test_sensitivity_is_the_difference_quotient(offset):
    measure, weights, epsilon = smooth_problem()

    def ratio(epsilon, scale=1.0):
        if offset is None:
            return limits.pruning_limit(measure, scale * weights, epsilon)
        return limits.random_subspace_threshold(measure, scale * weights, epsilon, offset=offset)

    limit, h = ratio(epsilon), 0.02
    found = limits.sensitivity(measure, limit, epsilon, offset=offset)
    by_epsilon = (ratio(epsilon * (1 + h)).ratio - ratio(epsilon * (1 - h)).ratio) / (2 * h)
    by_scale = (ratio(epsilon, 1 + h).ratio - ratio(epsilon, 1 - h).ratio) / (2 * h)
    # The quotient errs by h² and by 1/(hD|ρ'|) of itself, about 1e-3 each.
    assert found.epsilon * epsilon == pytest.approx(float(by_epsilon), rel=5e-3)
    assert found.scale == pytest.approx(float(by_scale), rel=5e-3)
    assert found.radius * limit.radius == pytest.approx(float(found.scale), rel=1e-5)
    assert found.scale == pytest.approx(-2 * epsilon * float(found.epsilon), rel=1e-3)


def test_limit_has_derivatives_in_all_that_it_is_made_of():
    measure, weights, epsilon = smooth_problem()

    def solve(epsilon, weights, nodes):
        m = dataclasses.replace(measure, nodes=nodes)
        limit = limits.pruning_limit(m, weights, epsilon)
        return limit.ratio, limit.radius

    arguments = (epsilon, weights, measure.nodes)
    zeros = [jnp.zeros_like(x) for x in arguments]
    directions = (0.1 * epsilon, 100 * weights**3, measure.nodes * jnp.array([0.2, 0.1, 0.3, -0.2]))
    for place, direction in enumerate(directions):
        tangents = [*zeros]
        tangents[place] = jnp.asarray(direction)
        _, found = jax.jvp(solve, arguments, tuple(tangents))
        ends = []
        for h in (-0.1, 0.1):
            moved = [*arguments]
            moved[place] = moved[place] + h * direction
            ends.append(np.array(solve(*moved)))
        np.testing.assert_allclose(found, (ends[1] - ends[0]) / 0.2, rtol=0.01)
    gradient = jax.grad(lambda w: solve(epsilon, w, measure.nodes)[0])(weights)
    _, (forward, _) = jax.jvp(lambda w: solve(epsilon, w, measure.nodes), (weights,), (weights,))
    assert jnp.vdot(gradient, weights) == pytest.approx(float(forward), rel=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_limit_of_weights_of_any_precision(dtype):
    draws = np.random.default_rng(9).standard_normal(50)
    with jax.enable_x64(dtype == jnp.float64):
        weights = jnp.asarray(draws, dtype)
        measure = exact_measure(jnp.linspace(0, 2, 50))
        solve = lambda e, w: limits.pruning_limit(measure, w, e).ratio  # noqa: E731
        expected = fewest(excesses(np.linspace(0, 2, 50), weights, np.float64(2)))
        assert solve(2.0, weights) == pytest.approx(expected / 50)
        rates = jax.grad(solve, (0, 1))(2.0, weights)
        assert rates[0] < 0
        assert rates[1].dtype == dtype


@pytest.mark.parametrize("epsilon", [0.0, 1e30])
def test_derivatives_are_finite_at_the_ends(epsilon):
    for weights in (jnp.zeros(3), jnp.array([0.0, 1.0, 1.0]), jnp.ones(3)):
        measure = exact_measure(jnp.array([0.0, 1.0, 2.0]))
        gradient = jax.grad(lambda e, w=weights, m=measure: limits.pruning_limit(m, w, e).ratio)
        assert jnp.isfinite(gradient(epsilon))
        limit = limits.pruning_limit(measure, weights, epsilon)
        assert all(jnp.isfinite(x) for x in limits.sensitivity(measure, limit, epsilon))


def test_error_of_epsilon_is_joined_through_the_sensitivity():
    measure, weights, epsilon = smooth_problem(dim=10_000)
    error = 0.05 * epsilon
    known = Estimate(epsilon, error, epsilon - 1.96 * error, epsilon + 1.96 * error)
    limit = limits.pruning_limit(measure, weights, known)
    draws = epsilon + error * np.random.default_rng(4).standard_normal(400)
    solve = jax.jit(jax.vmap(limits.pruning_limit, (None, None, 0)))
    spread = float(solve(measure, weights, draws.astype(np.float32)).ratio.std())
    # The standard deviation of 400 draws is itself known to 1/√800 = 3.5 %.
    assert limit.standard_error == pytest.approx(spread, rel=0.1)
    half_width = 1.96 * float(limit.standard_error)
    assert limit.upper - limit.ratio == pytest.approx(half_width, rel=1e-3)
    assert limit.ratio - limit.lower == pytest.approx(half_width, rel=1e-3)


@pytest.fixture(scope="module")
def many_probes():
    """One measure a probe of the same diagonal operator, and its exact spectrum."""
    eigenvalues = jnp.concatenate([jnp.zeros(1000), jnp.geomspace(1e-2, 5, 1000)])
    keys = jax.random.split(jax.random.key(0), 100)
    run = lambda key: spectrum.spectral_measure(  # noqa: E731
        lambda v: eigenvalues * v, key, dim=2000, num_steps=24
    )
    return jax.jit(jax.vmap(run))(keys), exact_measure(eigenvalues)


def test_standard_error_is_the_spread_over_probes(many_probes):
    measures, exact = many_probes
    weights, epsilon = jax.random.normal(jax.random.key(1), (2000,)), 5.0
    solve = jax.jit(jax.vmap(limits.pruning_limit, (0, None, None)))
    found = solve(measures, weights, epsilon)
    truth = limits.pruning_limit(exact, weights, epsilon).ratio
    # The spread of 100 draws is known to 7 %.
    assert found.standard_error.mean() == pytest.approx(float(found.ratio.std()), rel=0.25)
    assert found.ratio.mean() == pytest.approx(float(truth), rel=0.02)
    assert ((found.lower <= truth) & (truth <= found.upper)).mean() >= 0.9
    assert (found.lower <= found.ratio).all()
    assert (found.ratio <= found.upper).all()

    measure = jax.tree.map(lambda x: x[0], measures)
    by_probes, error = found.standard_error[0], jnp.asarray(0.5)
    joint = limits.pruning_limit(measure, weights, Estimate(epsilon, error, 4.0, 6.0))
    limit = jax.tree.map(lambda x: x[0], found)
    by_epsilon = limits.sensitivity(measure, limit, epsilon).epsilon * error
    assert joint.standard_error == pytest.approx(float(jnp.hypot(by_probes, by_epsilon)), rel=1e-4)
    # Without an error of ε the ends are where the ends of the bound meet the ratio.
    squares = np.sort(np.asarray(weights, np.float64) ** 2)
    for end in ("lower", "upper"):
        ratio = float(getattr(limit, end))
        radius = np.sum(squares[: 2000 - round(ratio * 2000)]) ** 0.5
        bound = float(getattr(limits.lower_bound(measure, radius, epsilon), end))
        assert bound == pytest.approx(ratio, abs=0.1 * 1.96 * float(by_probes))
    # The interval of the probes stays, and gets wider by what ε adds to their error alone.
    added = 1.96 * float(joint.standard_error - by_probes)
    assert added > 0.01 * float(limit.upper - limit.lower)
    assert float(limit.lower - joint.lower) == pytest.approx(added, rel=0.02)
    assert float(joint.upper - limit.upper) == pytest.approx(added, rel=0.02)
    known = limits.pruning_limit(measure, weights, Estimate(epsilon, jnp.asarray(0.0), 5.0, 5.0))
    np.testing.assert_allclose((known.lower, known.upper), (limit.lower, limit.upper), rtol=1e-5)


@pytest.fixture(scope="module")
def measured():
    """A measure with errors of its own, weights, and an ε at which ρ* is in the middle."""
    rng = np.random.default_rng(11)
    eigenvalues = jnp.asarray(rng.exponential(size=200) * (rng.random(200) < 0.5), jnp.float32)
    measure = spectrum.spectral_measure(
        lambda v: eigenvalues * v, KEY, dim=200, num_steps=8, num_probes=2
    )
    return measure, jnp.asarray(rng.standard_normal(200), jnp.float32), 5.0


def test_the_error_of_epsilon_is_added_once_to_that_of_the_probes(measured):
    measure, weights, epsilon = measured
    plain = limits.pruning_limit(measure, weights, epsilon)
    assert plain.standard_error > 0
    joint = limits.pruning_limit(measure, weights, Estimate(epsilon, 2.0, 1.0, 9.0))
    by_epsilon = 2 * abs(float(limits.sensitivity(measure, plain, epsilon).epsilon))
    assert by_epsilon > float(plain.standard_error) / 3
    both = np.hypot(float(plain.standard_error), by_epsilon)
    assert joint.standard_error == pytest.approx(both, rel=1e-4)
    added = 1.96 * (both - float(plain.standard_error))
    assert joint.upper - plain.upper == pytest.approx(added, rel=1e-3)
    assert plain.lower - joint.lower == pytest.approx(added, rel=1e-3)


def test_the_interval_of_the_probes_is_where_the_ends_of_the_bound_cross(measured):
    measure, weights, epsilon = measured
    limit = limits.pruning_limit(measure, weights, epsilon)
    radii = np.sqrt(squares_removed(weights)).astype(np.float32)
    bound = limits.lower_bound(measure, radii, epsilon)
    ratios = np.arange(201) / 200
    for end in ("lower", "value", "upper"):
        found = limit.ratio if end == "value" else getattr(limit, end)
        assert found == pytest.approx(
            fewest(np.asarray(getattr(bound, end)) - ratios) / 200, abs=1e-6
        )
    assert limit.lower < limit.ratio < limit.upper


def test_the_ends_of_intervals_are_ratios(measured):
    measure, weights, epsilon = measured
    vague = Estimate(epsilon, 100.0, 0.0, 200.0)
    limit = limits.pruning_limit(measure, weights, vague)
    assert (limit.lower, limit.upper) == (0, 1)
    share = lambda x: jnp.abs(x) / (jnp.abs(x) + 1e-3)  # noqa: E731
    for num_flat, end, beyond in ((7, "lower", -0.01), (1, "upper", 1.01)):
        values = jnp.where(jnp.arange(8) < num_flat, 0.0, 1.0)
        measure = spectrum.spectral_measure(lambda v, x=values: x * v, KEY, dim=8, num_steps=2)
        raw = float(getattr(spectrum.trace_bracket(measure, share), end))
        assert raw < beyond if num_flat == 7 else raw > beyond  # else this would test nothing
        found = limits.lower_bound(measure, 1.0, 5e-4)
        assert getattr(found, end) == (0 if num_flat == 7 else 1)


def test_slopes_at_no_tolerance_at_all():
    """At ε = 0, ρ = (1/D) Σ [λ > 0] is passed at a slope in ε; the error of ε is carried by it."""
    eigenvalues = jnp.array([1.0, 2.0, 4.0, 0.0])
    weights = jnp.array([4.0, 3.0, 2.0, 1.0])
    measure = exact_measure(eigenvalues)
    limit = limits.pruning_limit(measure, weights, 0.0)
    assert limit.num_kept == 3
    # E = ¼ Σ λ/(λ+c) - ρ, c = 2ε/R² with R = 1: dE/dε = -½ Σ 1/λ, dE/dρ = -1 at R as it is.
    by_epsilon = -0.5 * (1 + 1 / 2 + 1 / 4)
    rates = limits.sensitivity(measure, limit, 0.0)
    assert rates.epsilon == pytest.approx(by_epsilon, rel=1e-5)
    error = limits.pruning_limit(measure, weights, Estimate(0.0, 1e-3, 0.0, 2e-3)).standard_error
    assert error == pytest.approx(-by_epsilon * 1e-3, rel=1e-5)


@pytest.mark.parametrize("offset", limits.prediction.OFFSETS)
def test_one_very_sharp_direction_keeps_a_weight(offset):
    measure = exact_measure(jnp.array([1.0, 0.0, 0.0, 0.0]))
    for epsilon in (0.0, 1e-30, 1e-6):
        limit = limits.random_subspace_threshold(measure, jnp.ones(4), epsilon, offset=offset)
        assert limit.num_kept == 1


def test_loss_tolerance_is_that_of_numpy():
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((30, 4)).astype(np.float32), rng.standard_normal(30)
    w = rng.standard_normal(4).astype(np.float32)
    losses = (x @ w - y) ** 2
    loss = lambda w, batch: jnp.mean((batch[0] @ w - batch[1]) ** 2)  # noqa: E731
    whole = (x.reshape(3, 10, 4), y.reshape(3, 10).astype(np.float32))
    ragged = [(x[:13], whole[1].ravel()[:13]), (x[13:], whole[1].ravel()[13:])]
    for batches in (whole, ragged):
        for size in (128, 32):
            found = limits.loss_tolerance(loss, w, batches, batch_size=size)
            assert found == pytest.approx(losses.std() / size**0.5, rel=1e-4)


def test_error_of_the_loss_tolerance_is_its_spread():
    losses = np.random.default_rng(6).exponential(size=(300, 8, 100)).astype(np.float32)
    loss = lambda w, batch: jnp.mean(w * batch)  # noqa: E731
    found = [limits.loss_tolerance_estimate(loss, 1.0, batches) for batches in losses]
    values, errors = (np.array([getattr(e, n) for e in found]) for n in Estimate._fields[:2])
    # σ of an exponential variable is 1; the spread of 300 draws is known to 4 %.
    assert values.mean() == pytest.approx(128**-0.5, rel=0.02)
    assert errors.mean() == pytest.approx(values.std(), rel=0.15)
    covered = np.mean([e.lower <= 128**-0.5 <= e.upper for e in found])
    assert covered > 0.88
    constant = limits.loss_tolerance_estimate(loss, 1.0, jnp.ones((2, 5)))
    assert (constant.value, constant.standard_error) == (0, 0)


@pytest.mark.parametrize("negative", limits.bounds.NEGATIVE)
def test_key_factors(negative):
    rng = np.random.default_rng(7)
    eigenvalues = rng.standard_normal(200)
    weights, epsilon = rng.standard_normal(200).astype(np.float32), 2.0
    measure = exact_measure(eigenvalues.astype(np.float32))
    found = limits.key_factors(measure, weights, epsilon, negative=negative)
    limit = limits.pruning_limit(measure, weights, epsilon, negative=negative)
    trace = curvature(eigenvalues, negative).sum()
    radius = float(limit.radius)
    assert found.radius == limit.radius
    assert found.norm == pytest.approx(np.linalg.norm(weights), rel=1e-5)
    assert found.removed == pytest.approx((radius / np.linalg.norm(weights)) ** 2, rel=1e-5)
    assert found.trace == pytest.approx(trace, rel=1e-5)
    # The rise at a random point at distance R, by Monte Carlo.
    points = rng.standard_normal((20_000, 200))
    points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
    rises = points**2 @ curvature(eigenvalues, negative) / 2
    assert found.rise == pytest.approx(rises.mean(), abs=5 * rises.std() / 20_000**0.5)
    assert found.bound == pytest.approx(float(found.rise / (found.rise + epsilon)), rel=1e-5)
    assert found.bound >= limit.ratio - 1 / 200
    assert found.elasticity > 0


def test_key_factors_of_a_limit_of_other_weights_are_refused():
    measure = exact_measure(jnp.full(4, 2.0))
    limit = limits.pruning_limit(measure, jnp.array([4.0, 3.0, 3.0, 1.0]), 10.0)
    with pytest.raises(ValueError, match=r"limit must be one of these weights.*radius.*exceeds"):
        limits.key_factors(measure, jnp.ones(4), 10.0, limit=limit)


def test_key_factors_where_nothing_matters():
    found = limits.key_factors(exact_measure(jnp.zeros(3)), jnp.zeros(3), 0.0)
    assert all(x == 0 for x in found)


def test_several_thresholds_and_their_squares_in_one_search():
    rng = np.random.default_rng(8)
    dim = 3 * magnitudes._BLOCK + 7
    weights = (rng.standard_normal(dim) ** 3).astype(np.float32)
    weights[::5] = 0.25
    wanted = jnp.array([0, 1, dim // 50, dim // 3, dim // 2, dim - 1])
    find = jax.jit(
        lambda w: magnitudes.find_split(
            magnitudes.magnitude_bits(w), lambda kept, _: kept < wanted, wanted.shape
        )
    )
    split, found = find(weights)
    np.testing.assert_array_equal(found, wanted)
    expected = np.sqrt(squares_removed(weights)[np.asarray(wanted)])
    np.testing.assert_allclose(split.radius(found), expected, rtol=1e-6)


def test_a_product_that_is_not_finite_is_announced_under_jit():
    """The whole chain in one program, where nothing can be raised: NaN in, NaN out."""
    weights, eigenvalues = jnp.linspace(0.1, 1, 64), jnp.linspace(0.0, 2, 64)

    @jax.jit
    def chain(poison, key):
        product = lambda v: eigenvalues * v / (jnp.abs(v).max() < poison)  # noqa: E731
        measure = spectrum.spectral_measure(product, key, dim=64, num_steps=6, num_probes=2)
        published = limits.pruning_limit(measure, weights, 1.0)
        return {
            "limits": (
                published,
                limits.pruning_limit(measure, weights, 1.0, negative="clip"),
                limits.random_subspace_threshold(measure, weights, 1.0),
                limits.random_subspace_threshold(measure, weights, 1.0, offset="random"),
            ),
            "others": (
                limits.lower_bound(measure, 1.0, 1.0),
                limits.sensitivity(measure, published, 1.0),
                limits.key_factors(measure, weights, 1.0, limit=published),
            ),
        }

    healthy, broken = chain(jnp.inf, KEY), chain(0.2, KEY)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(healthy))
    for found in broken["limits"]:
        assert found.num_kept == -1
        assert all(jnp.isnan(x) for x in found._replace(num_kept=jnp.nan))
    for name, value in broken["others"][2]._asdict().items():
        assert jnp.isnan(value) or name == "norm", name
    assert all(jnp.isnan(x) for x in jax.tree.leaves(broken["others"][:2]))


@pytest.mark.parametrize("what", ["nodes", "weights", "epsilon"])
def test_nan_in_any_argument_is_announced_under_jit(what):
    nan = {"nodes": 1.0, "weights": 1.0, "epsilon": 1.0} | {what: jnp.nan}
    measure, weights = good()

    @jax.jit
    def solve(nan):
        poisoned = dataclasses.replace(measure, nodes=measure.nodes * nan["nodes"])
        return limits.pruning_limit(poisoned, weights * nan["weights"], nan["epsilon"])

    found = solve(nan)
    assert jnp.isnan(found.ratio)
    assert jnp.isnan(found.lower)
    assert jnp.isnan(found.upper)


def test_loss_tolerance_under_jit_says_by_nan_that_it_is_unknown():
    losses = np.random.default_rng(6).standard_normal((3, 10)).astype(np.float32)
    measure = jax.jit(
        lambda w, x: limits.loss_tolerance_estimate(lambda w, x: jnp.mean(w * x), w, x)
    )
    found = measure(1.0, losses)
    assert found.value == pytest.approx(losses.std() / 128**0.5, rel=1e-4)
    losses[1, 2] = np.inf
    assert all(jnp.isnan(x) for x in measure(1.0, losses))


def test_memory_stays_below_four_floats_a_weight():
    dim = 25_000_000
    measure = dataclasses.replace(exact_measure(jnp.geomspace(1e-6, 1.0, 64)), dim=dim)
    weights = jax.ShapeDtypeStruct((dim,), jnp.float32)
    compiled = jax.jit(limits.pruning_limit).lower(measure, weights, jnp.float32(0.01)).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < 4 * 4 * dim


def test_weights_whose_norm_overflows_are_refused():
    measure, weights = good()
    with pytest.raises(ValueError, match=r"norm that float32 can hold, .* up to 3e\+38: scale"):
        limits.pruning_limit(measure, 3e38 * weights, 1.0)
    # What the message advises leaves the ratio as it is.
    near, far = (limits.pruning_limit(measure, s * weights, s**2) for s in (1.0, 1e12))
    assert near.ratio == far.ratio


def good():
    return exact_measure(jnp.array([1.0, 2.0])), jnp.ones(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: limits.pruning_limit(good()[0], jnp.ones(3), 1.0), "weights must have as many"),
        (lambda: limits.pruning_limit(*good(), -1.0), "epsilon must lie in"),
        (lambda: limits.pruning_limit(*good(), jnp.nan), "epsilon must lie in"),
        (lambda: limits.pruning_limit(*good(), jnp.ones(2)), "epsilon must be one number"),
        (lambda: limits.pruning_limit(*good(), Estimate(1.0, jnp.inf, 0, 2)), "standard_error"),
        (lambda: limits.pruning_limit(*good(), 1.0, negative="square"), "negative must be one of"),
        (lambda: limits.pruning_limit(good()[0], jnp.array([1, jnp.nan]), 1.0), "must be finite"),
        (lambda: limits.random_subspace_threshold(*good(), 1.0, offset="no"), "offset must be"),
        (lambda: limits.lower_bound(good()[0], -1.0, 1.0), "radius must lie in"),
        (lambda: limits.lower_bound(good()[0], 1.0, jnp.nan), "epsilon must lie in"),
        (lambda: limits.upper_bound(good()[0], 1.0, 1.0, dim=1), "dim must be at least 2"),
        (lambda: limits.trace_bound(-1.0, 1.0, 1.0, dim=1), "trace must lie in"),
        (lambda: limits.trace_bound(jnp.inf, 1.0, 1.0, dim=1), "trace must be finite"),
        (lambda: exact_measure(jnp.array([1.0, jnp.inf])), "eigenvalues must be finite"),
    ],
)
def test_bad_values_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bad_types_are_named():
    measure, weights = good()
    with pytest.raises(TypeError, match="measure must be a SpectralMeasure"):
        limits.pruning_limit(jnp.ones(2), weights, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="floating array"):
        limits.pruning_limit(measure, jnp.array([1, 2]), 1.0)
    broken = dataclasses.replace(measure, nodes=jnp.array([[jnp.nan, 1.0]]))
    for call in (limits.pruning_limit, limits.key_factors):
        with pytest.raises(ValueError, match="measure must have finite"):
            call(broken, weights, 1.0)
    with pytest.raises(ValueError, match="removed_measure must have finite"):
        limits.gap(broken, 1.0, 1.0, dim=2)


def test_bad_data_for_the_loss_tolerance_are_named():
    loss = lambda w, batch: jnp.mean(w * batch)  # noqa: E731
    with pytest.raises(ValueError, match="at least 2 examples"):
        limits.loss_tolerance(loss, 1.0, jnp.ones((1, 1)))
    with pytest.raises(ValueError, match="batch_size"):
        limits.loss_tolerance(loss, 1.0, jnp.ones((1, 2)), batch_size=0)
    with pytest.raises(FloatingPointError, match="finite at every example"):
        limits.loss_tolerance(loss, 1.0, jnp.array([[1.0, jnp.nan]]))
    with pytest.raises(TypeError, match="one real floating number"):
        limits.loss_tolerance(lambda w, batch: w * batch[:, None], 1.0, jnp.ones((1, 2)))


@pytest.fixture(scope="module")
def quadratics():
    """Quadratic losses with weights that tie and vanish, and ε of all sizes."""
    rng = np.random.default_rng(3)
    factors = rng.standard_normal((40, DIM, DIM))
    hessians = factors @ factors.transpose(0, 2, 1) + 1e-3 * np.eye(DIM)
    weights = np.round(2 * rng.standard_normal((40, DIM))) / 2
    return hessians, weights, np.exp(3 * rng.standard_normal((40, 5)))


def rises_of_quadratic(hessian, weights, k):
    """Rise of the loss with the k largest weights kept, set anew by least squares or not."""
    order = np.argsort(-np.abs(weights), kind="stable")
    kept, removed = order[:k], order[k:]
    step = np.zeros(DIM)
    step[removed] = -weights[removed]
    one_shot = step @ hessian @ step / 2
    force = -hessian[np.ix_(kept, removed)] @ step[removed]
    step[kept] = np.linalg.lstsq(hessian[np.ix_(kept, kept)], force, rcond=None)[0]
    return step @ hessian @ step / 2, one_shot


def test_quadratic_limit_against_least_squares_at_every_count(quadratics):
    with jax.enable_x64(True):
        for hessian, weights, epsilons in zip(*quadratics, strict=True):
            found = limits.quadratic_limit(jnp.asarray(hessian), jnp.asarray(weights), epsilons)
            rises = np.array([rises_of_quadratic(hessian, weights, k) for k in range(DIM + 1)])
            for i, epsilon in enumerate(epsilons):
                fewest = [1 + max(np.flatnonzero(r > epsilon), default=-1) for r in rises.T]
                assert [found.refitted[i], found.one_shot[i]] == fewest


@pytest.mark.parametrize(
    ("of_h", "of_w"), [(2.0**100, 1.0), (2.0**-100, 1.0), (1.0, 2.0**40), (2.0**80, 2.0**-90)]
)
def test_quadratic_limit_is_free_of_scale(quadratics, of_h, of_w):
    for hessian, weights, epsilons in zip(*quadratics, strict=True):
        hessian, weights, epsilons = (
            np.asarray(x, np.float32) for x in (hessian, weights, epsilons)
        )
        plain = limits.quadratic_limit(hessian, weights, epsilons)
        scaled = limits.quadratic_limit(
            hessian * np.float32(of_h),
            weights * np.float32(of_w),
            np.float32(epsilons.astype(float) * of_h * of_w**2),
        )
        jax.tree.map(np.testing.assert_array_equal, scaled, plain)


def test_quadratic_limit_refuses_an_asymmetric_hessian():
    skew = jnp.array([[2.0, 1.0], [0.5, 2.0]])
    with pytest.raises(ValueError, match=r"hessian must be symmetric, .* up to 2 .* by up to 0\.5"):
        limits.quadratic_limit(skew, jnp.ones(2), 1.0)
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((300, 300)).astype(np.float32)
    gram = factor @ factor.T
    gram[1, 0] *= 1 + 2e-6  # what rounding leaves
    limits.quadratic_limit(gram, np.ones(300, np.float32), 1.0)


@pytest.mark.parametrize("epsilon", [-0.1, jnp.nan])
def test_the_count_of_an_unknown_limit_is_minus_one(epsilon):
    measure, weights = exact_measure(jnp.ones(4)), jnp.arange(1.0, 5.0)
    found = jax.jit(lambda epsilon: limits.pruning_limit(measure, weights, epsilon))(epsilon)
    assert found.num_kept == -1
    assert jnp.isnan(found.ratio)


def test_how_asymmetric_a_hessian_may_be():
    """Some hundred units of √D eps may come from rounding, ten thousand do not."""
    unit = 4**0.5 * float(jnp.finfo(jnp.float32).eps)
    plain = jnp.eye(4)
    limits.quadratic_limit(plain.at[0, 1].add(100 * unit), jnp.ones(4), 1.0)
    with pytest.raises(ValueError, match="hessian must be symmetric"):
        limits.quadratic_limit(plain.at[0, 1].add(1e4 * unit), jnp.ones(4), 1.0)


def test_the_ridge_of_a_singular_hessian():
    """Of H = 11ᵀ + rI and w = 1, k refitted weights leave a rise of ½ r (D - k) D/k."""
    dim = 100
    ridge = dim * float(jnp.finfo(jnp.float32).eps) * dim  # D eps ‖H‖
    for kept in (30, 55, 80):
        rise = 0.5 * ridge * (dim - kept) * dim / kept
        found = limits.quadratic_limit(jnp.ones((dim, dim)), jnp.ones(dim), rise)
        assert abs(int(found.refitted) - kept) <= 1


def test_quadratic_limit_by_weights_of_equal_curvature():
    """On H = hI both kinds keep the k with ½hR(k)² ≤ ε, the Gaussian picture at its simplest."""
    weights = jnp.array([0.0, 4.0, -1.0, 2.0])
    found = limits.quadratic_limit(2.0 * jnp.eye(4), weights, jnp.array([0.0, 0.9, 1.0, 5.0, 21.0]))
    assert found.refitted.tolist() == found.one_shot.tolist() == [3, 3, 2, 1, 0]


def test_quadratic_limit_of_a_singular_hessian():
    """Of H = BᵀB the least rise is that of a least-squares fit of the columns that go."""
    factor = np.random.default_rng(0).normal(size=(5, 12))
    weights = np.arange(12.0, 0.0, -1)
    rises = [
        np.linalg.norm(factor @ weights - factor[:, :k] @ np.linalg.lstsq(
            factor[:, :k], factor @ weights, rcond=None)[0]) ** 2 / 2
        for k in range(12)
    ]  # fmt: skip
    with jax.enable_x64(True):
        hessian = jnp.asarray(factor.T @ factor)
        for k in range(1, 6):
            epsilon = (max(rises[k], 0.01) + rises[k - 1]) / 2
            assert limits.quadratic_limit(hessian, jnp.asarray(weights), epsilon).refitted == k
    found = limits.quadratic_limit(jnp.ones((3, 3)), jnp.array([3.0, 2.0, 1.0]), 0.1)
    assert (found.refitted, found.one_shot) == (1, 3)


def test_quadratic_limit_without_a_least_rise():
    hessian = jnp.diag(jnp.array([1.0, -1.0, 1.0]))
    found = limits.quadratic_limit(hessian, jnp.arange(1.0, 4.0), 0.5)
    assert found.refitted == found.one_shot == 1


@pytest.mark.parametrize(
    ("shape", "epsilon", "message"),
    [((2, 3), 1.0, "hessian"), ((3, 3), 1.0, "hessian"), ((2, 2), -1.0, "epsilon")],
)
def test_quadratic_limit_names_what_is_wrong(shape, epsilon, message):
    with pytest.raises(ValueError, match=message):
        limits.quadratic_limit(jnp.ones(shape), jnp.ones(2), epsilon)


def test_quadratic_limit_refuses_what_is_not_finite():
    hessian, weights = jnp.eye(2), jnp.ones(2)
    with pytest.raises(ValueError, match="hessian must be finite"):
        limits.quadratic_limit(hessian.at[0, 1].set(jnp.nan), weights, 1.0)
    with pytest.raises(ValueError, match="weights must be finite"):
        limits.quadratic_limit(hessian, weights.at[0].set(jnp.inf), 1.0)
