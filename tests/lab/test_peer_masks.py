"""The scores of others against their definitions, solved densely."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import curvature, flatten_weights, models, training
from jaxlimit.lab import peer_masks

MODULE = models.MLP(widths=(5, 4), num_classes=3)
IMAGES = np.random.default_rng(0).normal(size=(12, 2, 2, 1)).astype(np.float32)
PARAMS = jax.device_get(MODULE.init(jax.random.key(1), IMAGES)["params"])
PARAMS["Dense_0"]["bias"] = np.linspace(-1, 1, 5, dtype=np.float32)
LABELS = np.arange(12) % 3
LAYERS = peer_masks.layers_of(PARAMS, IMAGES)


def hessian(layer, damping):
    x = np.float64(layer.inputs)
    h = x.T @ x / len(x)
    return h + damping * np.trace(h) / len(h) * np.eye(len(h))


def test_layers_are_those_of_the_network():
    logits = LAYERS[-1].inputs @ LAYERS[-1].weights
    expected = MODULE.apply({"params": PARAMS}, IMAGES)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    same = peer_masks.flat(PARAMS, LAYERS, [layer.weights for layer in LAYERS])
    np.testing.assert_array_equal(same, flatten_weights(PARAMS)[0])
    assert PARAMS["Dense_0"]["kernel"] is not None


def test_wanda_and_its_comparison_within_an_output():
    layer = LAYERS[0]
    scores, shares = peer_masks.wanda(layer), peer_masks.evenly(peer_masks.wanda(layer))
    for i, j in itertools.product(*map(range, scores.shape)):
        expected = abs(layer.weights[i, j]) * np.sqrt(sum(x[i] ** 2 for x in layer.inputs))
        np.testing.assert_allclose(scores[i, j], expected, rtol=1e-5)
        worth_no_more = (scores[:, j] <= scores[i, j]).sum()
        assert shares[i, j] == np.float32(worth_no_more / len(scores))


def least_rise(h, w, i):
    """The least ½ dᵀH d over all d that take weight i to 0, by its normal equations."""
    others = np.delete(np.arange(len(w)), i)
    d = np.zeros(len(w))
    d[i] = -w[i]
    d[others] = np.linalg.solve(h[np.ix_(others, others)], -h[others, i] * d[i])
    return d @ h @ d / 2, d


def test_optimal_brain_surgeon_of_a_layer():
    layer = LAYERS[1]
    scores, h = peer_masks.layer_obs(layer, damping=0.02), hessian(layer, 0.02)
    for i, j in itertools.product(*map(range, scores.shape)):
        expected, _ = least_rise(h, np.float64(layer.weights[:, j]), i)
        np.testing.assert_allclose(scores[i, j], expected, rtol=1e-4)


@pytest.mark.parametrize("block_size", [1, 2, 100])
def test_sparse_gpt_solves_each_step(block_size):
    """Each input's weights that go are replaced by the best of those behind them."""
    layer, damping, threshold = LAYERS[1], 0.02, 0.02
    h = hessian(layer, damping)
    found = peer_masks.sparse_gpt(layer, threshold, block_size=block_size, damping=damping)
    expected = np.float64(layer.weights)
    for j in range(expected.shape[1]):
        w, goes = expected[:, j], np.zeros(len(h), bool)
        for i in range(len(w)):
            if i % block_size == 0:
                for k in range(i, min(i + block_size, len(w))):
                    goes[k] = least_rise(h[k:, k:], w[k:], 0)[0] <= threshold
            if goes[i]:
                w[i:] += least_rise(h[i:, i:], w[i:], 0)[1]
                w[i] = 0
    assert 0 < (expected == 0).sum() < expected.size
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("block_size", [7, 200])
def test_wood_fisher_is_the_inverse_by_blocks(block_size):
    loss = training.make_loss(MODULE)
    weights, unflatten = flatten_weights(PARAMS)
    gradients = np.stack([
        jax.grad(lambda w, one=one: loss(unflatten(w), one))(weights)
        for one in zip(IMAGES[:, None], LABELS[:, None], strict=True)
    ])  # fmt: skip
    rows = curvature.factor_rows(
        loss,
        PARAMS,
        [(jnp.asarray(IMAGES), jnp.asarray(LABELS))],
        mask=np.ones(weights.size, bool),
        matrix="fisher",
    )
    found = peer_masks.wood_fisher(np.asarray(weights), rows, block_size=block_size, damping=1e-2)
    # The recursion of the paper: one gradient after the other by Woodbury's identity.
    for start in range(0, weights.size, block_size):
        at = slice(start, start + block_size)
        inverse = np.eye(len(weights[at])) / 1e-2
        for g in np.float64(gradients[:, at]):
            moved = inverse @ g
            inverse -= np.outer(moved, moved) / (len(gradients) + g @ moved)
        expected = np.float64(weights[at]) ** 2 / (2 * np.diag(inverse))
        np.testing.assert_allclose(found[at], expected, rtol=2e-3, atol=1e-9)
