"""Spectra of principal blocks, against dense eigenvalues of the submatrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import curvature, spectrum


@pytest.fixture(scope="module")
def symmetric():
    rng = np.random.default_rng(0)
    H = rng.normal(size=(30, 30))
    blocks = {
        "a": np.arange(30) < 11,
        "b": (np.arange(30) >= 11) & (np.arange(30) < 14),
        "c": np.arange(30) >= 14,
    }
    return (H + H.T) / 2, blocks


def test_small_blocks_are_exact(symmetric):
    H, blocks = symmetric
    matvec = jax.tree_util.Partial(jnp.matmul, jnp.asarray(H, jnp.float32))
    found = spectrum.block_measures(matvec, jax.random.key(0), blocks, num_steps=30)
    for name, mask in blocks.items():
        values = np.linalg.eigvalsh(H[np.ix_(mask, mask)])
        measure = found[name]
        assert measure.dim == mask.sum()
        nodes = np.asarray(measure.nodes[0])[np.asarray(measure.weights[0]) > 0]
        np.testing.assert_allclose(np.sort(nodes), values, atol=1e-4)


def test_traces_are_right_on_average(symmetric):
    H, blocks = symmetric
    matvec = jax.tree_util.Partial(jnp.matmul, jnp.asarray(H, jnp.float32))
    settings = {"num_steps": 16, "num_probes": 400}
    found = spectrum.block_measures(matvec, jax.random.key(1), blocks, **settings)
    for name, mask in blocks.items():
        f = lambda x: jnp.tanh(x) ** 2  # noqa: E731
        values = np.linalg.eigvalsh(H[np.ix_(mask, mask)])
        estimate = spectrum.trace_function(found[name], f)
        away = abs(float(estimate.value) - np.tanh(values) ** 2 @ np.ones(mask.sum()) / mask.sum())
        assert away < 4 * float(estimate.standard_error) + 1e-5


def test_blocks_of_a_network_are_as_by_their_own_operators():
    keys = jax.random.split(jax.random.key(2), 4)
    params = {"in": jax.random.normal(keys[0], (5, 4)), "out": jax.random.normal(keys[1], (4, 3))}
    batches = jax.random.normal(keys[2], (2, 20, 5))
    loss = lambda p, x: jnp.mean(jnp.tanh(jnp.tanh(x @ p["in"]) @ p["out"]) ** 2)  # noqa: E731
    whole = curvature.hessian_matvec(loss, params, batches)
    blocks = {"in": np.arange(32) < 20, "out": np.arange(32) >= 20}
    found = spectrum.block_measures(whole, keys[3], blocks, num_steps=20)
    for name in params:
        alone = curvature.hessian_matvec(
            loss, params, batches, where=lambda path, leaf, own=name: path == own
        )
        dense = np.asarray(jax.vmap(alone)(jnp.eye(params[name].size)))
        nodes = np.asarray(found[name].nodes[0])[np.asarray(found[name].weights[0]) > 1e-7]
        assert np.abs(nodes[:, None] - np.linalg.eigvalsh(dense)).min(1).max() < 1e-4


def test_each_block_has_probes_of_its_own_on_the_sphere_of_its_entries(symmetric):
    """The first coefficients, α₁ = vᵀHv and β₁ = ‖Hv - α₁v‖ within the block, by hand."""
    H, blocks = symmetric
    key, matvec = jax.random.key(3), jax.tree_util.Partial(jnp.matmul, jnp.asarray(H, jnp.float32))
    blocks = blocks | {"a again": blocks["a"]}
    found = spectrum.block_measures(matvec, key, blocks, num_steps=30, num_probes=2)
    for i, (name, mask) in enumerate(blocks.items()):
        recurrence = found[name].recurrence
        assert recurrence.diagonal.shape == (2, 16)  # as deep as the largest block
        for j, k in enumerate(jax.random.split(jax.random.fold_in(key, i), 2)):
            v = np.where(mask, np.asarray(spectrum.probe(k, 30), float), 0)
            v /= np.linalg.norm(v)
            image = np.where(mask, H @ v, 0)
            alpha = v @ image
            assert recurrence.diagonal[j, 0] == pytest.approx(alpha, abs=1e-5)
            beta = np.linalg.norm(image - alpha * v)
            assert recurrence.off_diagonal[j, 0] == pytest.approx(beta, abs=1e-5)
    loose = spectrum.block_measures(
        matvec, key, blocks, num_steps=30, num_probes=2, reorthogonalize="none"
    )
    assert (loose["a"].recurrence.diagonal != found["a"].recurrence.diagonal).any()


def test_blocks_of_an_operator_that_is_read_on_the_host():
    data = np.random.default_rng(3).normal(size=(3, 8, 6)).astype(np.float32)
    loss = lambda w, x: jnp.mean((x @ w) ** 2)  # noqa: E731
    streamed = curvature.hessian_matvec_over(loss, jnp.ones(6), lambda: iter(data))
    mask = np.array([1, 1, 0, 1, 0, 0], bool)
    found = spectrum.block_measures(streamed, jax.random.key(0), {"some": mask}, num_steps=9)
    rows = data.reshape(-1, 6).astype(float)
    exact = np.linalg.eigvalsh((2 * rows.T @ rows / 24)[np.ix_(mask, mask)])
    np.testing.assert_allclose(np.sort(found["some"].nodes[0]), exact, rtol=1e-4)


def test_progress_and_bad_blocks(symmetric):
    H, blocks = symmetric
    matvec = jax.tree_util.Partial(jnp.matmul, jnp.asarray(H, jnp.float32))
    seen = []
    run = lambda blocks: spectrum.block_measures(  # noqa: E731
        matvec, jax.random.key(0), blocks, num_steps=4, on_progress=lambda *done: seen.append(done)
    )
    run(blocks)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(TypeError, match="boolean"):
        run({"a": np.ones(30)})
    with pytest.raises(ValueError, match="at least one"):
        run({"a": np.zeros(30, bool)})
    with pytest.raises(ValueError, match="one size"):
        run({"a": np.ones(30, bool), "b": np.ones(29, bool)})
