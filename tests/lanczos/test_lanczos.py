"""Lanczos against dense linear algebra, and where it has to stop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import curvature, lanczos


def symmetric(key, dim, eigenvalues=None):
    matrix = np.random.default_rng(key).normal(size=(dim, dim))
    if eigenvalues is None:
        return (matrix + matrix.T) / np.sqrt(2 * dim)
    q, _ = np.linalg.qr(matrix)
    return (q * eigenvalues) @ q.T


def operator(matrix):
    return jax.tree_util.Partial(jnp.matmul, jnp.asarray(matrix, jnp.float32))


def dense(result):
    m = int(result.num_valid)
    a, b = np.asarray(result.diagonal)[:m], np.asarray(result.off_diagonal)[: m - 1]
    return np.diag(a) + np.diag(b, 1) + np.diag(b, -1)


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
def test_recurrence_holds_with_the_basis(reorthogonalize):
    matrix = symmetric(0, 60)
    start = jnp.ones(60)
    result = lanczos.tridiagonalize(
        operator(matrix), start, num_steps=12, reorthogonalize=reorthogonalize, keep_basis=True
    )
    basis = np.asarray(result.basis, np.float64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(12), atol=1e-5)
    left = basis @ matrix - dense(result) @ basis
    np.testing.assert_allclose(left[:-1], 0, atol=2e-6)
    assert np.linalg.norm(left[-1]) == pytest.approx(float(result.residual_norm), rel=1e-5)


def test_full_depth_finds_the_whole_spectrum():
    matrix = symmetric(1, 40)
    result = lanczos.tridiagonalize(operator(matrix), jnp.arange(1.0, 41), num_steps=99)
    assert result.diagonal.shape == (40,)
    assert int(result.num_valid) == 40
    np.testing.assert_allclose(
        np.linalg.eigvalsh(dense(result)), np.linalg.eigvalsh(matrix), atol=3e-6
    )
    assert float(result.residual_norm) == 0


def test_full_reorthogonalisation_finds_no_ghosts():
    """An outlier converges early; without reorthogonalisation its copies appear."""
    eigenvalues = np.concatenate([np.linspace(-1, 1, 298), [40, 100]])
    matrix, start = symmetric(2, 300, eigenvalues), jnp.ones(300)
    count = {}
    for mode in ("full", "none"):
        result = lanczos.tridiagonalize(operator(matrix), start, num_steps=60, reorthogonalize=mode)
        count[mode] = (np.linalg.eigvalsh(dense(result)) > 99.9).sum()
    assert count["full"] == 1
    assert count["none"] > 1


@pytest.mark.parametrize(
    ("matrix", "num_valid"),
    [
        (3 * np.eye(20), 1),
        (np.zeros((20, 20)), 1),
        (np.diag([1.0, 2.0, 3.0] + 17 * [0.0]), 4),
        (np.diag([1.0] * 10 + [5.0] * 10), 2),
    ],
    ids=["multiple of identity", "zero", "rank 3", "two eigenvalues"],
)
def test_invariant_subspace_ends_the_recurrence(matrix, num_valid):
    start = jnp.asarray(np.random.default_rng(0).normal(size=20), jnp.float32)
    result = lanczos.tridiagonalize(operator(matrix), start, num_steps=10)
    assert int(result.num_valid) == num_valid
    assert float(result.residual_norm) == 0
    np.testing.assert_array_equal(np.asarray(result.diagonal)[num_valid:], 0)
    distinct = np.unique(np.diag(matrix))
    np.testing.assert_allclose(np.linalg.eigvalsh(dense(result)), distinct, atol=1e-5)
    # Without reorthogonalisation rounding may grow and the recurrence go on: the converged
    # eigenvalues come again, and their weights add up to what they should be.
    loose = lanczos.tridiagonalize(operator(matrix), start, num_steps=10, reorthogonalize="none")
    values, vectors = np.linalg.eigh(dense(loose))
    moments = [np.sum(vectors[0] ** 2 * values**k) for k in range(6)]
    share = np.asarray(start, np.float64) ** 2 / np.sum(np.asarray(start, np.float64) ** 2)
    truth = [np.sum(share * np.diag(matrix) ** k) for k in range(6)]
    np.testing.assert_allclose(moments, truth, rtol=1e-5, atol=1e-6)


def test_start_vector_that_is_an_eigenvector():
    matrix = symmetric(3, 30)
    values, vectors = np.linalg.eigh(matrix)
    with jax.enable_x64(True):
        result = lanczos.tridiagonalize(
            jax.tree_util.Partial(jnp.matmul, jnp.asarray(matrix)),
            jnp.asarray(vectors[:, 4]),
            num_steps=5,
        )
    # The eigenvector is one to rounding, and so is the end of the recurrence.
    assert int(result.num_valid) == 1
    assert float(result.diagonal[0]) == pytest.approx(values[4], rel=1e-12)


def test_cutting_the_steps_into_calls_changes_no_bit():
    matrix, start = operator(symmetric(4, 50)), jnp.ones(50)
    whole = lanczos.tridiagonalize(matrix, start, num_steps=9, reorthogonalize="none")
    state = lanczos.start(start, num_steps=9, reorthogonalize="none")
    for steps in (2, 3, 4):
        state = lanczos.extend(matrix, state, num_steps=steps, reorthogonalize="none")
    pieces = lanczos.finish(state)
    np.testing.assert_array_equal(whole.diagonal, pieces.diagonal)
    np.testing.assert_array_equal(whole.off_diagonal, pieces.off_diagonal)
    np.testing.assert_array_equal(whole.residual_norm, pieces.residual_norm)


def test_steps_past_the_room_change_nothing():
    matrix, start = operator(symmetric(5, 20)), jnp.ones(20)
    state = lanczos.start(start, num_steps=4, reorthogonalize="none")
    full = lanczos.extend(matrix, state, num_steps=4, reorthogonalize="none")
    more = lanczos.extend(matrix, full, num_steps=3, reorthogonalize="none")
    jax.tree.map(np.testing.assert_array_equal, full, more)


def test_selective_reorthogonalisation_keeps_the_outliers_ghosts_away():
    """Plain Lanczos finds each outlier many times in 120 steps; selectively, once."""
    eigenvalues = np.concatenate([np.linspace(-1, 1, 995), [20, 30, 40, 70, 100]])
    start, count = jnp.ones(1000), {}
    for mode in ("selective", "none"):
        result = lanczos.tridiagonalize(
            operator(np.diag(eigenvalues)), start, num_steps=120, reorthogonalize=mode
        )
        count[mode] = (np.linalg.eigvalsh(dense(result)) > 10).sum()
    assert count["selective"] == 5
    assert count["none"] > 10


def test_selective_is_full_during_the_warm_up():
    """The same recurrence, rows read in another order: apart by rounding alone, hence float64."""
    with jax.enable_x64(True):
        matrix, start = operator(symmetric(6, 80)), jnp.ones(80)
        full, selective = (
            lanczos.tridiagonalize(matrix, start, num_steps=lanczos.WARM_UP, reorthogonalize=mode)
            for mode in ("full", "selective")
        )
    np.testing.assert_allclose(full.diagonal, selective.diagonal, atol=1e-12)
    np.testing.assert_allclose(full.off_diagonal, selective.off_diagonal, atol=1e-12)


def test_non_finite_product_is_reported_with_its_step_and_spreads_no_nan():
    def matvec(v):
        # Fails once the vectors have left the first coordinates.
        return jnp.where(v[4] != 0, jnp.nan, jnp.roll(v, 1) + jnp.roll(v, -1))

    result = lanczos.tridiagonalize(matvec, jnp.eye(9)[0], num_steps=8)
    assert int(result.failed_step) == 4
    assert int(result.num_valid) == 4
    assert all(np.isfinite(np.asarray(x)).all() for x in result)


def test_a_weak_coupling_is_no_end():
    weak = jnp.array([[1.0, 1e-4], [1e-4, 2.0]])
    result = lanczos.tridiagonalize(lambda v: weak @ v, jnp.eye(2)[0], num_steps=2)
    assert result.num_valid == 2
    np.testing.assert_allclose(result.off_diagonal, 1e-4, rtol=1e-5)


def test_an_end_is_seen_where_the_diagonal_is_zero():
    """Of two opposite eigenvalues, excited alike, all is in the off-diagonal."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((20, 20)))[0]
    values = np.concatenate([[1, -1], np.linspace(-0.5, 0.5, 18)])
    matrix = jnp.asarray((q * values) @ q.T, jnp.float32)
    start = jnp.asarray(q[:, 0] + q[:, 1], jnp.float32)
    result = lanczos.tridiagonalize(lambda v: matrix @ v, start, num_steps=6)
    assert result.num_valid == 2
    np.testing.assert_allclose(result.off_diagonal[0], 1, rtol=1e-5)


def test_a_residual_too_long_for_its_type_is_reported():
    """Each entry of the product is finite, and so is its part along the vector."""
    product = jnp.array([[1.0, 3e38, 3e38], [3e38, 0.0, 0.0], [3e38, 0.0, 0.0]])
    result = lanczos.tridiagonalize(lambda v: product @ v, jnp.eye(3)[0], num_steps=2)
    assert result.failed_step == 0
    assert np.isfinite(result.off_diagonal).all()
    assert np.isfinite(result.diagonal).all()


def test_a_product_along_the_vector_too_long_for_its_type_is_reported():
    result = lanczos.tridiagonalize(lambda v: jnp.sign(v) * 3e38, jnp.ones(4), num_steps=2)
    assert (result.failed_step, result.num_valid) == (0, 0)
    assert not result.diagonal.any()
    assert not result.off_diagonal.any()


def test_nothing_is_left_at_full_depth_however_orthogonal():
    values = jnp.concatenate([jnp.linspace(0, 1, 57), jnp.array([10.0, 50.0, 100.0])])
    result = lanczos.tridiagonalize(
        lambda v: values * v, jnp.ones(60), num_steps=60, reorthogonalize="none"
    )
    assert (result.num_valid, result.residual_norm) == (60, 0)


def test_gradient_through_the_decomposition():
    with jax.enable_x64(True):
        matrix = jnp.asarray(symmetric(7, 12))
        direction = jnp.asarray(symmetric(8, 12))
        start = jnp.arange(1.0, 13.0)

        def moments(t):
            matvec = jax.tree_util.Partial(jnp.matmul, matrix + t * direction)
            result = lanczos.tridiagonalize(matvec, start, num_steps=5)
            return jnp.concatenate([result.diagonal, result.off_diagonal])

        exact = jax.jacfwd(moments)(0.0)
        reverse = jax.jacrev(moments)(0.0)
        step = 1e-6
        difference = (moments(step) - moments(-step)) / (2 * step)
    np.testing.assert_allclose(exact, difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(reverse, exact, rtol=1e-9, atol=1e-10)


def test_jit_and_vmap_agree_with_the_loop():
    matrix = operator(symmetric(9, 16))
    starts = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)
    run = lambda start: lanczos.tridiagonalize(matrix, start, num_steps=6).diagonal  # noqa: E731
    together = jax.jit(jax.vmap(run))(starts)
    np.testing.assert_allclose(together, np.stack([run(s) for s in starts]), atol=2e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_vector": jnp.zeros(3)}, "start_vector must not be zero"),
        ({"start_vector": jnp.array([1.0, jnp.nan, 0.0])}, "start_vector must be finite"),
        ({"start_vector": jnp.ones((3, 1))}, r"start_vector must be a vector \[D\]"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        (
            {"reorthogonalize": "some"},
            "reorthogonalize must be one of 'full', 'selective', 'none', got 'some'",
        ),
        ({"matvec": lambda v: v[:2]}, r"matvec must map \[3\] to \[3\]"),
    ],
)
def test_bad_input_is_named(arguments, message):
    good = {"matvec": lambda v: v, "start_vector": jnp.ones(3), "num_steps": 2}
    settings = good | arguments
    with pytest.raises(ValueError, match=message):
        lanczos.tridiagonalize(settings.pop("matvec"), settings.pop("start_vector"), **settings)


def test_bad_types_are_named():
    with pytest.raises(TypeError, match="start_vector must be real floating, got dtype int32"):
        lanczos.tridiagonalize(lambda v: v, jnp.arange(3), num_steps=2)
    with pytest.raises(TypeError, match=r"num_steps must be a static int, got 2\.5"):
        lanczos.tridiagonalize(lambda v: v, jnp.ones(3), num_steps=2.5)


def test_products_over_an_iterator_on_the_host_give_the_same_recurrence():
    data = np.random.default_rng(3).normal(size=(3, 8, 6)).astype(np.float32)
    loss = lambda w, x: jnp.mean(jnp.tanh(x @ w) ** 2)  # noqa: E731
    params = jnp.linspace(-1.0, 1.0, 6)
    stacked = curvature.hessian_matvec(loss, params, jnp.asarray(data))
    streamed = curvature.hessian_matvec_over(loss, params, lambda: iter(data))
    results = [
        lanczos.tridiagonalize(matvec, jnp.arange(1.0, 7), num_steps=4)
        for matvec in (stacked, streamed)
    ]
    np.testing.assert_allclose(results[0].diagonal, results[1].diagonal, atol=1e-5)
    np.testing.assert_allclose(results[0].off_diagonal, results[1].off_diagonal, atol=1e-5)
