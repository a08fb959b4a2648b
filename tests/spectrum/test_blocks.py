"""Spectra of principal blocks, against dense eigenvalues of the submatrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import curvature, pruning, spectrum
from jaxlimit.curvature import _forms
from jaxlimit.spectrum import blocks


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


def deep_network(sizes=(12, 10, 8, 6, 3)):
    """Make a loss of four layers with biases, on batches of two sizes."""
    keys = jax.random.split(jax.random.key(4), len(sizes))
    params = {
        f"layer{i}": {"bias": 0.1 * jnp.ones(n), "kernel": jax.random.normal(key, (m, n)) / m**0.5}
        for i, (m, n, key) in enumerate(zip(sizes, sizes[1:], keys, strict=False))
    }
    batches = [(jax.random.normal(keys[-1], (n, sizes[0])), jnp.arange(n) % 3) for n in (20, 20, 7)]

    def loss(params, batch):
        hidden = batch[0]
        for i in range(len(params)):
            layer = params[f"layer{i}"]
            hidden = hidden @ layer["kernel"] + layer["bias"]
            hidden = jnp.tanh(hidden) if i < len(params) - 1 else hidden
        chosen = jax.nn.log_softmax(hidden)[jnp.arange(len(hidden)), batch[1]]
        return -chosen.mean()

    return loss, params, batches


def own(loss, params, batches, name):
    return curvature.hessian_matvec(
        loss, params, batches, where=lambda path, leaf: path.startswith(name)
    )


def operations(operator):
    program = jax.jit(lambda operator, v: operator(v)).lower(operator, jnp.ones(operator.dim))
    return program.compile().cost_analysis()["flops"]


def test_a_block_of_a_linearisation_asks_for_what_its_own_operator_does_and_no_more():
    loss, params, batches = deep_network()
    whole, masks = curvature.hessian_matvec(loss, params, batches), pruning.layer_masks(params)
    dense, together = jax.vmap(whole)(jnp.eye(whole.dim)), 0.0
    for name, mask in masks.items():
        block = blocks._neighbours(whole, mask)
        matrix = jax.vmap(block)(jnp.eye(block.dim))
        np.testing.assert_allclose(matrix, dense[np.ix_(mask, mask)], atol=1e-6)
        asked = operations(block)
        if name in ("layer0", "layer3"):
            assert asked <= operations(own(loss, params, batches, name))
        together += asked
    # A step of all four blocks asks for less than one product with the whole Hessian; restricted
    # products of the whole would ask for four.
    assert together < operations(whole)


@pytest.mark.slow
def test_layers_run_as_with_operators_of_their_own_on_one_linearisation(monkeypatch):
    monkeypatch.setattr(blocks, "_LONG", 0.0)
    loss, params, batches = deep_network()
    key, made, linearize = jax.random.key(5), [], _forms._linearize
    monkeypatch.setattr(_forms, "_linearize", lambda *a: made.append(a[0]) or linearize(*a))
    whole, masks = curvature.hessian_matvec(loss, params, batches), pruning.layer_masks(params)
    before = len(made)
    found = spectrum.block_measures(whole, key, masks, num_steps=8, num_probes=2)
    assert len(made) == before
    for i, name in enumerate(("layer0", "layer3")):
        place = list(masks).index(name)
        alone = own(loss, params, batches, name)
        settings = {"num_steps": 8, "num_probes": 2}
        wanted = spectrum.spectral_measure(alone, jax.random.fold_in(key, place), **settings)
        assert found[name].dim == wanted.dim
        np.testing.assert_allclose(found[name].nodes, wanted.nodes, rtol=2e-3, atol=2e-4)
        assert len(made) > before + i  # each of them anew


def test_blocks_that_are_no_neighbours_are_projected():
    loss, params, batches = deep_network()
    whole = curvature.hessian_matvec(loss, params, batches)
    mask = np.arange(whole.dim) % 2 == 0
    assert blocks._neighbours(whole, mask) is None
    recomputed = curvature.hessian_matvec(loss, params, batches, mode="forward-over-reverse")
    assert blocks._neighbours(recomputed, np.arange(whole.dim) < 5) is None
