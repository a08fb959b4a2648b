from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy import stats

from jaxlimit import traces

DIM = 60
ESTIMATORS = {
    "hutchinson": traces.hutchinson,
    "hutch++": traces.hutch_plus_plus,
    "xtrace": traces.xtrace,
    "diagonal": traces.diagonal,
    "diagonal by hutchinson": partial(traces.diagonal, method="hutchinson"),
}
SKETCHED = ("hutch++", "xtrace", "diagonal")
SPECTRA = {
    "decaying": 1 / np.arange(1.0, DIM + 1) ** 2,
    "indefinite": np.linspace(-2, 3, DIM),
    "step": np.concatenate([np.ones(6), np.full(DIM - 6, 1e-2)]),
}


def dense(eigenvalues, seed=0):
    q = stats.ortho_group.rvs(len(eigenvalues), random_state=seed)
    return (q * eigenvalues) @ q.T


def operator(matrix):
    return Partial(jnp.matmul, jnp.asarray(matrix, jnp.float32))


def truth(name, matrix):
    return np.diag(matrix) if name.startswith("diagonal") else np.trace(matrix)


def over_seeds(name, matrix, num_matvecs, num_seeds):
    matvec = operator(matrix)
    run = lambda key: ESTIMATORS[name](matvec, key, dim=DIM, num_matvecs=num_matvecs)  # noqa: E731
    return jax.tree.map(np.asarray, jax.vmap(run)(jax.random.split(jax.random.key(7), num_seeds)))


# --- Statistics over seeds --------------------------------------------------------------------


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_unbiased_and_intervals_cover(name):
    num_seeds = 200
    for spectrum, eigenvalues in SPECTRA.items():
        matrix = dense(eigenvalues)
        estimate = over_seeds(name, matrix, 18, num_seeds)
        error = estimate.value - truth(name, matrix)
        spread = error.std(0, ddof=1)
        assert np.all(np.abs(error.mean(0)) < 4.5 * spread / num_seeds**0.5), spectrum
        covered = (estimate.lower <= truth(name, matrix)) & (truth(name, matrix) <= estimate.upper)
        independent = name.startswith("hutch") and spectrum != "indefinite"
        stated = coverage_of_skewed_samples(6 if name == "hutch++" else 18) if independent else 0.95
        # Four standard deviations of a binomial frequency.
        assert covered.mean() > stated - 4 * (stated * (1 - stated) / num_seeds) ** 0.5, spectrum
        ratio = spread.mean() / np.sqrt((estimate.standard_error**2).mean(0)).mean()
        # The samples of the leave-one-out estimators are correlated: their error comes out low.
        most = 2.0 if name in ("xtrace", "diagonal") else 1.4
        assert 0.7 < ratio < most, (spectrum, ratio)


def coverage_of_skewed_samples(num_samples):
    """How often t intervals cover at the worst, one eigenvalue alone: forms like χ² of 1 degree."""
    samples = np.random.default_rng(0).chisquare(1, (20_000, num_samples))
    half_width = stats.t.ppf(0.975, num_samples - 1) * stats.sem(samples, axis=1)
    return np.mean(np.abs(samples.mean(1) - 1) < half_width)


def test_sketches_beat_hutchinson_where_few_eigenvalues_carry_the_trace():
    matrix = dense(SPECTRA["decaying"])
    rms = {
        name: np.sqrt(np.mean((over_seeds(name, matrix, 18, 200).value - np.trace(matrix)) ** 2))
        for name in ("hutchinson", "hutch++", "xtrace")
    }
    assert rms["xtrace"] < rms["hutch++"] < 0.5 * rms["hutchinson"]


@pytest.mark.parametrize("distribution", traces.DISTRIBUTIONS)
def test_hutchinson_has_the_variance_of_its_distribution(distribution):
    matrix = dense(SPECTRA["indefinite"])
    estimate = traces.hutchinson(
        operator(matrix),
        jax.random.key(1),
        dim=DIM,
        num_matvecs=4000,
        distribution=distribution,
        block_size=4000,
    )
    squares = np.sum(matrix**2)
    variance = {
        "rademacher": 2 * (squares - np.sum(np.diag(matrix) ** 2)),
        "gaussian": 2 * squares,
        # The trace part drops out, since every probe has the same norm.
        "sphere": 2 * (squares - np.trace(matrix) ** 2 / DIM) * DIM / (DIM + 2),
    }[distribution]
    # Quadratic forms are nearly normal here: their sample variance is good to √(2/n) = 2.2 %.
    np.testing.assert_allclose(estimate.standard_error**2 * 4000, variance, rtol=0.1)
    assert abs(estimate.value - np.trace(matrix)) < 4 * estimate.standard_error


# --- The definitions, written out -------------------------------------------------------------


def left_out_samples(matrix, probes, quantity):
    """The samples of XTrace or XDiag from the definition, a QR factorisation for each."""
    dim, k = len(matrix), len(probes)
    products = matrix @ probes.T
    samples = []
    for i in range(k):
        q = np.linalg.qr(np.delete(products, i, axis=1))[0]
        left = probes[i] - q @ (q.T @ probes[i])
        if quantity == "trace":
            left *= np.sqrt(dim - k + 1) / np.linalg.norm(left)
            samples.append(np.trace(q.T @ matrix @ q) + left @ matrix @ left)
        else:
            rest = products[:, i] - q @ (q.T @ products[:, i])
            samples.append(np.diag(q @ q.T @ matrix) + probes[i] * rest)
    return np.array(samples)


def xdiag_probes(key, k):
    sign_key, size_key = jax.random.split(key)
    sizes = jax.random.uniform(size_key, (k, DIM), jnp.float32, 0.5, 1.5)
    return np.sqrt(sizes) * np.asarray(jax.random.rademacher(sign_key, (k, DIM), jnp.float32))


@pytest.mark.parametrize("quantity", ["trace", "diagonal"])
def test_leave_one_out_estimates_follow_their_definition(quantity):
    matrix, key, k = dense(SPECTRA["indefinite"]), jax.random.key(5), 9
    if quantity == "trace":
        estimate = traces.xtrace(operator(matrix), key, dim=DIM, num_matvecs=2 * k + 1)
        probes = np.float64(jax.random.normal(key, (k, DIM)))
    else:
        estimate = traces.diagonal(operator(matrix), key, dim=DIM, num_matvecs=2 * k)
        probes = np.float64(xdiag_probes(key, k))
    samples = left_out_samples(matrix, probes, quantity)
    without = np.array(
        [left_out_samples(matrix, np.delete(probes, i, 0), quantity).mean(0) for i in range(k)]
    )
    error = samples.std(0, ddof=1) / k**0.5
    jackknife = np.sqrt((k - 1) / k * np.sum((without - without.mean(0)) ** 2, axis=0))
    half_width = stats.t.ppf(0.975, k - 1) * np.maximum(error, jackknife)

    np.testing.assert_allclose(estimate.value, samples.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(estimate.standard_error, error, rtol=1e-3)
    np.testing.assert_allclose(estimate.upper - estimate.lower, 2 * half_width, rtol=1e-3)


@pytest.mark.parametrize("block_size", [1, 4])
def test_the_diagonal_by_hutchinson_follows_its_definition(block_size):
    """Mean and spread of z ⊙ Hz over 14 signs, in whole blocks and a rest."""
    matrix, key = dense(SPECTRA["indefinite"]), jax.random.key(5)
    settings = {"num_matvecs": 14, "method": "hutchinson", "block_size": block_size}
    found = traces.diagonal(operator(matrix), key, dim=DIM, **settings)
    keys = jax.random.split(key, 14)
    signs = np.float64([jax.random.rademacher(k, (DIM,), jnp.float32) for k in keys])
    samples = signs * (signs @ matrix)
    error = samples.std(0, ddof=1) / 14**0.5
    np.testing.assert_allclose(found.value, samples.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-4)
    half_width = stats.t.ppf(0.975, 13) * error
    np.testing.assert_allclose(found.upper - found.value, half_width, rtol=1e-3)


def test_a_failed_product_of_a_later_block_is_named_by_its_place_in_all():
    key = jax.random.key(5)
    tenth = jax.random.rademacher(jax.random.split(key, 14)[9], (DIM,), jnp.float32)
    matvec = lambda v: jnp.where(jnp.vdot(v, tenth) == DIM, jnp.nan, 1) * v  # noqa: E731
    settings = {"num_matvecs": 14, "method": "hutchinson", "block_size": 4}
    with pytest.raises(FloatingPointError, match="NaN or infinity in product 9"):
        traces.diagonal(matvec, key, dim=DIM, **settings)


def test_hutch_plus_plus_follows_its_definition():
    """tr QᵀHQ of the sketch, and Hutchinson's forms of the signs projected off it."""
    matrix, key = dense(SPECTRA["indefinite"]), jax.random.key(5)
    found = traces.hutch_plus_plus(operator(matrix), key, dim=DIM, num_matvecs=14)
    sketch_key, residual_key = jax.random.split(key)
    probes = np.float64(jax.random.normal(sketch_key, (4, DIM)))
    q = np.linalg.qr(matrix @ probes.T)[0]
    signs = [
        jax.random.rademacher(k, (DIM,), jnp.float32) for k in jax.random.split(residual_key, 6)
    ]
    left = np.float64(signs) - np.float64(signs) @ q @ q.T
    samples = np.trace(q.T @ matrix @ q) + np.sum(left * (left @ matrix), axis=1)
    np.testing.assert_allclose(found.value, samples.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.standard_error, samples.std(ddof=1) / 6**0.5, rtol=1e-3)


def test_hutch_plus_plus_counts_the_products_of_its_sketch_before_those_of_the_rest():
    """H sees three entries, which the sketch takes off the signs: all others stay ±1."""
    first = jnp.arange(40) < 3

    def matvec(vector):
        is_sign = jnp.abs(jnp.abs(vector[10]) - 1) < 1e-5
        return jnp.where(is_sign, jnp.nan, 1) * jnp.where(first, (1 + jnp.arange(40)) * vector, 0)

    with pytest.raises(FloatingPointError, match="NaN or infinity in product 6"):
        traces.hutch_plus_plus(matvec, jax.random.key(0), dim=40, num_matvecs=10)


def test_xtrace_agrees_with_matfree_on_the_same_test_vectors():
    stochtrace = pytest.importorskip("matfree.stochtrace")
    matrix, key, k = dense(SPECTRA["decaying"]), jax.random.key(5), 9
    matvec = operator(matrix)
    samples = stochtrace.leave_one_out_xtrace()(matvec, jax.random.normal(key, (k, DIM)))
    ours = traces.xtrace(matvec, key, dim=DIM, num_matvecs=2 * k)
    np.testing.assert_allclose(ours.value, samples.mean(), rtol=1e-5)
    np.testing.assert_allclose(ours.standard_error, samples.std(ddof=1) / k**0.5, rtol=1e-2)


# --- Where they are exact ---------------------------------------------------------------------


@pytest.mark.parametrize("name", SKETCHED)
def test_exact_below_the_rank_of_the_sketch_at_any_scale(name):
    eigenvalues = np.zeros(DIM)
    for kept in ([], [2.0], [2.0, -1.0, 0.5], [3.0, 3.0, 3.0]):
        eigenvalues[: len(kept)] = kept
        for scale in (1.0, 1e-12, 1e8):
            matrix = scale * dense(eigenvalues)
            estimate = ESTIMATORS[name](
                operator(matrix), jax.random.key(2), dim=DIM, num_matvecs=18
            )
            within = dict(rtol=1e-5, atol=3e-5 * scale)
            np.testing.assert_allclose(estimate.value, truth(name, matrix), **within)
            np.testing.assert_allclose(estimate.standard_error, 0, atol=3e-5 * scale)
            assert all(np.isfinite(field).all() for field in estimate)


def test_diagonal_of_a_tiny_support_is_never_called_exact_wrongly():
    # Three coordinates: plain random signs would often repeat there and end the sketch too early.
    matrix = np.zeros((DIM, DIM))
    matrix[:3, :3] = [[2.0, 1.0, 0.5], [1.0, 3.0, -1.0], [0.5, -1.0, 1.0]]
    for key in jax.random.split(jax.random.key(0), 20):
        estimate = traces.diagonal(operator(matrix), key, dim=DIM, num_matvecs=8)
        np.testing.assert_allclose(estimate.value, np.diag(matrix), atol=1e-3)


@pytest.mark.parametrize("name", SKETCHED)
def test_as_many_products_as_dimensions_give_the_exact_answer(name):
    for dim in (1, 6):
        matrix = dense(np.arange(1.0, dim + 1)) if dim > 1 else np.array([[-2.0]])
        num_matvecs = max(dim, 3)
        estimate = ESTIMATORS[name](
            operator(matrix), jax.random.key(0), dim=dim, num_matvecs=num_matvecs, block_size=4
        )
        np.testing.assert_allclose(estimate.value, truth(name, matrix), rtol=1e-5)
        assert not np.any(estimate.standard_error)


def test_hutchinson_is_exact_on_diagonal_operators_and_unsure_after_one_probe():
    matvec = Partial(jnp.multiply, jnp.arange(float(DIM)))
    estimate = traces.hutchinson(matvec, jax.random.key(0), dim=DIM, num_matvecs=3)
    assert estimate.value == DIM * (DIM - 1) / 2
    assert estimate.standard_error == 0
    for name, fewest in (("hutch++", 3), ("diagonal", 2), ("diagonal by hutchinson", 1)):
        single = ESTIMATORS[name](matvec, jax.random.key(0), dim=DIM, num_matvecs=fewest)
        assert np.isfinite(single.value).all(), name
        assert np.isinf(single.standard_error).all(), name
        assert (single.lower == -np.inf).all(), name
        assert (single.upper == np.inf).all(), name


def test_float64_reaches_its_own_precision():
    with jax.enable_x64(True):
        matrix = dense(np.concatenate([[5.0, -2.0, 1.0], np.zeros(DIM - 3)]))
        matvec = Partial(jnp.matmul, jnp.asarray(matrix))
        estimate = traces.xtrace(
            matvec, jax.random.key(0), dim=DIM, num_matvecs=12, dtype=jnp.float64
        )
        assert estimate.value.dtype == jnp.float64
        np.testing.assert_allclose(estimate.value, 4.0, rtol=1e-13)


# --- Composition, cost and bad input ----------------------------------------------------------


@pytest.mark.parametrize("name", ["hutch++", "xtrace", "diagonal by hutchinson"])
def test_the_products_are_as_many_as_promised(name):
    matrix = np.float32(dense(SPECTRA["indefinite"]))
    counted = []

    def product(vectors):
        counted.append(vectors.size // DIM)
        return vectors @ matrix

    def matvec(vector):
        result = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
        return jax.pure_callback(product, result, vector, vmap_method="expand_dims")

    run = partial(ESTIMATORS[name], matvec, jax.random.key(3), dim=DIM, num_matvecs=14)
    jax.block_until_ready(run(block_size=4))
    assert sum(counted) == 14
    assert max(counted) == 4


@pytest.mark.parametrize("name", ["xtrace", "diagonal by hutchinson"])
def test_blocks_and_jit_change_nothing(name):
    matvec = operator(dense(SPECTRA["indefinite"]))
    run = partial(ESTIMATORS[name], matvec, jax.random.key(3), dim=DIM, num_matvecs=18)
    for a, b in zip(run(), jax.jit(partial(run, block_size=4))(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4)


def test_a_product_that_is_not_finite_is_named():
    def fails_on_unit_vectors(vector):
        return jnp.where(jnp.abs(jnp.linalg.norm(vector) - 1) < 1e-3, jnp.nan, 2) * vector

    key = jax.random.key(0)
    for name, num_matvecs, product in (
        ("xtrace", 6, 3),  # the first on the basis, after 6/2 for the sketch
        ("xtrace", 9, 0),  # as many as dimensions: unit vectors from the start
    ):
        run = partial(ESTIMATORS[name], fails_on_unit_vectors, key, dim=9, num_matvecs=num_matvecs)
        with pytest.raises(FloatingPointError, match=f"NaN or infinity in product {product}"):
            run()
    assert np.isnan(jax.jit(run)().value)
    always = Partial(jnp.multiply, jnp.inf)
    with pytest.raises(FloatingPointError, match="product 0"):
        traces.diagonal(always, key, dim=9, num_matvecs=4, method="hutchinson")


def test_bad_arguments_are_named():
    matvec, key = Partial(jnp.multiply, 2.0), jax.random.key(0)
    with pytest.raises(ValueError, match="num_matvecs must be at least 3, got 2"):
        traces.hutch_plus_plus(matvec, key, dim=5, num_matvecs=2)
    with pytest.raises(ValueError, match="num_matvecs must be at least 2, got 1"):
        traces.xtrace(matvec, key, dim=5, num_matvecs=1)
    with pytest.raises(ValueError, match="num_matvecs must be at least 2, got 1"):
        traces.diagonal(matvec, key, dim=5, num_matvecs=1)
    with pytest.raises(TypeError, match=r"num_matvecs must be a static int, got 2\.5"):
        traces.hutchinson(matvec, key, dim=5, num_matvecs=2.5)
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        traces.hutchinson(matvec, key, dim=5, num_matvecs=2, block_size=0)
    with pytest.raises(ValueError, match="distribution must be one of 'rademacher'"):
        traces.hutchinson(matvec, key, dim=5, num_matvecs=2, distribution="uniform")
    with pytest.raises(ValueError, match="method must be one of 'xdiag'"):
        traces.diagonal(matvec, key, dim=5, num_matvecs=2, method="probing")
    with pytest.raises(ValueError, match=r"matvec must map \[5\] to \[5\]"):
        traces.xtrace(lambda v: v[:3], key, dim=5, num_matvecs=2)
    with pytest.raises(TypeError, match="matvec must return real floating entries"):
        traces.xtrace(lambda v: v.astype(int), key, dim=5, num_matvecs=2)
    with pytest.raises(TypeError, match="dtype must be real floating, got int32"):
        traces.xtrace(matvec, key, dim=5, num_matvecs=2, dtype=jnp.int32)
    with pytest.raises(ValueError, match="dtype float64 needs 64-bit JAX"):
        traces.xtrace(matvec, key, dim=5, num_matvecs=2, dtype=jnp.float64)
