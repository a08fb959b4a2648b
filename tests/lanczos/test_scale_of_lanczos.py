"""H·s for s from 1e-30 to 1e30: the same recurrence, the same pairs, times s."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import lanczos

SCALES = [1e-30, 1e-20, 1e-19, 1e-7, 1e7, 1e18, 1e20, 1e30]
DIM = 60
# Of 60 eigenvalues in the first third of [0, 30], and three outliers.
EIGENVALUES = jnp.concatenate([jnp.linspace(0.1, 10, DIM - 3), jnp.array([26.6, 28.3, 30.0])])
START = jax.random.normal(jax.random.key(1), (DIM,))


def scaled(s):
    return jax.tree_util.Partial(jnp.multiply, EIGENVALUES * jnp.float32(s))


def close(result, wanted, s, rtol):
    """Whether a result is `wanted` times s, to a share of the largest of it."""
    result, wanted = np.float64(result) / float(np.float32(s)), np.float64(wanted)
    np.testing.assert_allclose(result, wanted, rtol=0, atol=rtol * np.abs(wanted).max())


@pytest.mark.parametrize("mode", lanczos.REORTHOGONALIZE)
@pytest.mark.parametrize("s", SCALES)
def test_the_recurrence_scales(mode, s):
    settings = {"num_steps": 52, "reorthogonalize": mode}
    # Rounding differs with s, and grows where the vectors lose orthogonality.
    depth = 8 if mode == "none" else 52
    with jax.enable_x64(True):
        truth = lanczos.tridiagonalize(
            jax.tree_util.Partial(jnp.multiply, EIGENVALUES.astype(jnp.float64)),
            START.astype(jnp.float64),
            **settings,
        )
    result = lanczos.tridiagonalize(scaled(s), START, **settings)
    assert (int(result.num_valid), int(result.failed_step)) == (52, -1)
    assert float(result.residual_norm) > 0
    if mode != "selective":
        close(result.diagonal[:depth], truth.diagonal[:depth], s, 2e-5)
        close(result.off_diagonal[: depth - 1], truth.off_diagonal[: depth - 1], s, 2e-5)
    beta = np.diag(np.float64(result.off_diagonal), 1)
    values = np.linalg.eigvalsh(np.diag(np.float64(result.diagonal)) + beta + beta.T)
    count = 1 if mode == "none" else 3
    close(values[-count:], EIGENVALUES[-count:], s, 1e-5)


@pytest.mark.parametrize("s", SCALES)
def test_an_invariant_subspace_is_told_from_a_small_operator(s):
    """Three eigenvalues end the recurrence after three steps, at no scale before or later."""
    three = jax.tree_util.Partial(
        jnp.multiply, jnp.repeat(jnp.array([1.0, 2.0, 4.0]), 20) * jnp.float32(s)
    )
    result = lanczos.tridiagonalize(three, START, num_steps=9)
    assert (int(result.num_valid), int(result.failed_step)) == (3, -1)
    assert float(result.residual_norm) == 0


@pytest.mark.parametrize("s", SCALES)
@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
def test_eigenpairs_scale(s, which):
    key = jax.random.key(0)
    pairs = lanczos.extremal_eigenpairs(scaled(s), key, dim=DIM, num_pairs=3, which=which)
    wanted = {"smallest": EIGENVALUES[:3], "both": EIGENVALUES[jnp.array([-1, -2, 0])]}
    wanted = wanted.get(which, EIGENVALUES[::-1][:3])
    close(pairs.values, wanted, s, 3e-5)
    assert bool(pairs.converged.all())
    assert bool(pairs.complete)
    # The tolerance of ε^(2/3) ‖H‖, and a rounding that is not told as 0.
    assert np.all(np.float64(pairs.residual_norms) <= 2.5e-5 * 30 * s)
    assert np.all(np.float64(pairs.residual_norms) > 0)


@pytest.mark.parametrize("s", SCALES)
def test_eigenpairs_in_two_passes_scale(s):
    pairs = lanczos.two_pass_eigenpairs(scaled(s), START, num_steps=40, num_pairs=3)
    close(pairs.values, EIGENVALUES[::-1][:3], s, 1e-5)
    vectors, values = np.float64(pairs.vectors), np.float64(pairs.values)[:, None] / s
    residuals = np.linalg.norm(vectors * np.float64(EIGENVALUES) - values * vectors, axis=1)
    np.testing.assert_allclose(np.float64(pairs.residual_norms) / s, residuals, atol=2e-5)
    limit = float(np.finfo(np.float32).eps) ** (2 / 3) * 30 * s
    np.testing.assert_array_equal(pairs.converged, np.float64(pairs.residual_norms) <= limit)
    assert not bool(pairs.complete)
    assert (int(pairs.num_products), int(pairs.failed_product)) == (83, -1)


def test_two_passes_say_what_has_not_converged():
    pairs = lanczos.two_pass_eigenpairs(scaled(1), START, num_steps=8, num_pairs=2)
    assert not bool(pairs.converged.any())


def test_a_norm_beyond_the_range_is_a_failure_and_no_invariant_subspace():
    """Every entry of these products is finite, their norm is not."""
    huge = jax.tree_util.Partial(jnp.matmul, jnp.full((256, 256), 3e37))
    result = lanczos.tridiagonalize(huge, jnp.eye(256)[0], num_steps=4)
    assert int(result.failed_step) == 0
    assert all(np.isfinite(np.asarray(x)).all() for x in result)


def test_products_of_zero_after_the_end_may_be_anything():
    result = lanczos.tridiagonalize(
        lambda v: jnp.where(jnp.any(v != 0), 2 * v, jnp.nan), jnp.ones(3), num_steps=3
    )
    assert (int(result.num_valid), int(result.failed_step)) == (1, -1)
