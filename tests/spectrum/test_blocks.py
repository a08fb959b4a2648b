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
