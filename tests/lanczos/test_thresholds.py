"""The thresholds of Lanczos, each against its formula and against what happens beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxlimit import lanczos
from jaxlimit.lanczos import _basis, eigenpairs
from jaxlimit.lanczos.step import _converged, _reorthogonalize

# Each step takes off nine tenths of its vector or more, and with it a digit.
CANCELLING = np.geomspace(1, 1e-5, 60)


@pytest.mark.parametrize(
    ("mode", "store"), [("full", "device"), ("full", "pinned_host"), ("selective", "device")]
)
def test_the_second_pass_keeps_what_cancels_orthogonal(mode, store):
    """All but 1e-6 of a vector lies in the basis: one pass leaves a tenth of the rest in it."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(80, 80)))
    rows, beyond = q[:, :40].T, q[:, 40]
    vector = rows.T @ np.random.default_rng(1).normal(size=40) / 40**0.5 + 1e-6 * beyond
    state = lanczos.start(jnp.ones(80), num_steps=48, reorthogonalize=mode, store=store)
    basis = state.basis
    for i, row in enumerate(jnp.asarray(rows, jnp.float32)):
        basis = _basis.write(basis, jnp.int32(i), row, jnp.bool_(True))
    vector = jnp.asarray(vector, jnp.float32)
    left = np.asarray(_reorthogonalize(vector, basis, jnp.int32(39), mode), np.float64)
    assert np.abs(rows @ left).max() < 1e-5 * np.linalg.norm(left)
    # A vector that hardly cancels is projected once: what is left is what NumPy leaves.
    kept = np.asarray(
        _reorthogonalize(jnp.asarray(q[:, 50], jnp.float32), basis, jnp.int32(39), mode)
    )
    np.testing.assert_allclose(kept, q[:, 50], atol=1e-6)


@pytest.mark.parametrize("store", ["device", "pinned_host"])
def test_the_basis_stays_orthonormal_where_steps_cancel(store):
    state = lanczos.start(jnp.ones(60), num_steps=30, store=store)
    operator = Partial(jnp.multiply, jnp.asarray(CANCELLING, jnp.float32))
    state = lanczos.extend(operator, state, num_steps=30)
    basis = np.asarray(lanczos.finish(state).basis, np.float64)[: int(state.num_valid)]
    assert int(state.num_valid) > 15
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=3e-6)
    assert np.abs(basis @ np.asarray(state.current, np.float64)).max() < 3e-6


def test_ritz_vectors_are_locked_from_the_root_of_the_rounding_on():
    """Where they start to come back (Parlett, Scott 1979), and not when they are exact."""
    rng = np.random.default_rng(0)
    alpha, beta = np.linspace(1, 100, 24), rng.uniform(1, 4, 24)
    matrix = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
    values, vectors = np.linalg.eigh(matrix)
    errors = np.abs(beta[-1] * vectors[-1])
    limit = np.finfo(np.float32).eps ** 0.5 * np.abs(values).max()
    order = np.argsort(errors)[: lanczos.NUM_LOCKED]
    between = (errors[order] > limit / 50) & (errors[order] <= limit / 1.5)
    beyond = (errors[order] > 1.5 * limit) & (errors[order] < 50 * limit)
    assert between.any()
    assert beyond.any()
    found = np.asarray(_converged(*(jnp.asarray(x, jnp.float32) for x in (alpha, beta))))
    locked = np.linalg.norm(found, axis=0) > 0
    assert locked[between].all()
    assert not locked[beyond].any()
    np.testing.assert_array_equal(np.sort(~locked), ~locked)  # the best first
    overlap = np.abs(np.sum(found[:, locked] * vectors[:, order[locked]], axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-3)


def test_outliers_that_are_not_exact_yet_are_locked_too():
    """They have converged to 1e-5 when the warm-up ends, and would come again without it."""
    eigenvalues = np.concatenate([np.linspace(-1, 1, 995), [1.9, 2.2, 2.6, 3.0, 3.5]])
    result = lanczos.tridiagonalize(
        Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32)),
        jax.random.normal(jax.random.key(0), (1000,)),
        num_steps=110,
        reorthogonalize="selective",
    )
    beta = np.diag(np.float64(result.off_diagonal), 1)
    values = np.linalg.eigvalsh(np.diag(np.float64(result.diagonal)) + beta + beta.T)
    np.testing.assert_allclose(values[values > 1.5], eigenvalues[-5:], atol=1e-4)


# --- Eigenpairs ----------------------------------------------------------------------------------


def test_pairs_that_settle_have_converged():
    """Slowly, so that what a looser test lets through is seen to be beyond the tolerance."""
    eigenvalues = np.linspace(0, 1, 60) ** 0.5
    matvec = Partial(jnp.multiply, jnp.asarray(eigenvalues, jnp.float32))

    @jax.jit
    @jax.vmap
    def run(key):
        return lanczos.extremal_eigenpairs(
            matvec, key, dim=60, num_pairs=2, basis_size=6, tolerance=3e-3, max_products=2000
        )

    pairs = run(jax.random.split(jax.random.key(0), 60))
    assert bool(pairs.complete.all())
    assert bool(pairs.converged.all())
    assert np.all(np.asarray(pairs.residual_norms) <= 3e-3)


@pytest.mark.parametrize("dim", [10, 10**3, 10**6])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_miss_is_unlikely_by_the_bound_of_kuczynski_and_wozniakowski(dim, sign):
    """P(miss) ≤ 1.648 √D exp(-√gap (2k-1)), held against the library's switch on both sides."""
    which = {1: "largest", -1: "smallest"}[sign]
    settings = eigenpairs._Settings(dim, 1, which, 3, jnp.float32, None)
    values = sign * jnp.array([1.0, 0.9, 0.0])  # a gap of a tenth of the spectrum
    residuals = jnp.ones(3)  # the best of the rest has not converged
    steps = np.arange(1, 80)
    chance = 1.648 * dim**0.5 * np.exp(-(0.1**0.5) * (2 * steps - 1))
    state = eigenpairs._initial(jax.random.key(0), settings._replace(dim=5))
    found = [
        bool(
            eigenpairs._nothing_better(
                values,
                residuals,
                jnp.float32(1e-6),
                settings,
                state._replace(since_fresh=jnp.int32(k)),
            )
        )
        for k in steps
    ]
    np.testing.assert_array_equal(found, chance <= eigenpairs.MISS_PROBABILITY)
    assert eigenpairs.MISS_PROBABILITY == 1e-4


def test_a_converged_rest_needs_no_bound():
    settings = eigenpairs._Settings(10**6, 1, "largest", 3, jnp.float32, None)
    state = eigenpairs._initial(jax.random.key(0), settings._replace(dim=5))
    values, limit = jnp.array([1.0, 0.9, 0.0]), jnp.float32(1e-3)
    for residual, expected in ((0.9e-3, True), (1.1e-3, False)):
        residuals = jnp.array([0.0, residual, 1.0])
        assert (
            bool(eigenpairs._nothing_better(values, residuals, limit, settings, state)) == expected
        )
