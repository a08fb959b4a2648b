"""Budgets by layer against the sentences that define them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlimit import pruning


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 4, 8)), jnp.float32)},
        "dense": {
            "bias": jnp.asarray(rng.normal(size=6), jnp.float32),
            "kernel": jnp.asarray(rng.normal(size=(20, 6)), jnp.float32),
        },
        "norm": {"scale": jnp.ones(8)},
    }


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.9, 1.0])
def test_the_kernel_rule_keeps_the_whole_ratio_in_proportion(params, ratio):
    kept = pruning.erdos_renyi_kernel(params, ratio)
    sizes = {"conv/kernel": 288, "dense/bias": 6, "dense/kernel": 120}
    assert set(kept) == set(sizes)
    assert max(kept.values()) <= 1
    np.testing.assert_allclose(sum(kept[n] * sizes[n] for n in sizes), ratio * 414, rtol=1e-9)
    assert kept["dense/bias"] == 1
    if kept["dense/kernel"] < 1:
        quotient = (18 / 288) / (26 / 120)
        np.testing.assert_allclose(kept["conv/kernel"] / kept["dense/kernel"], quotient)


def test_the_kernel_rule_refuses_less_than_the_biases(params):
    with pytest.raises(ValueError, match="6 weights"):
        pruning.erdos_renyi_kernel(params, 0.01)


def test_a_mask_keeps_the_largest_of_each_leaf(params):
    ratios = {"conv/kernel": 0.25, "dense/bias": 1.0, "dense/kernel": 0.1}
    mask = pruning.mask_by_leaf(params, ratios)
    for leaf, keep, count in (
        (params["conv"]["kernel"], mask["conv"]["kernel"], 72),
        (params["dense"]["kernel"], mask["dense"]["kernel"], 12),
    ):
        size, keep = np.abs(np.asarray(leaf)), np.asarray(keep)
        assert keep.sum() == count
        assert size[keep].min() >= size[~keep].max()
    assert np.asarray(mask["norm"]["scale"]).all()
    with pytest.raises(ValueError, match="ratios"):
        pruning.mask_by_leaf(params, {"conv/kernel": 0.1})
    with pytest.raises(ValueError, match="dense/bias"):
        pruning.mask_by_leaf(params, ratios | {"dense/bias": 1.5})


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_lamp_is_its_definition_leaf_by_leaf(params, scale):
    leaves = [params["conv"]["kernel"], params["dense"]["bias"], params["dense"]["kernel"]]
    truth = []
    for leaf in leaves:
        w = np.asarray(leaf, np.float64).ravel()
        truth += [v**2 / (w[np.abs(w) >= abs(v)] ** 2).sum() for v in w]
    scaled = {k: {n: v * scale for n, v in d.items()} for k, d in params.items()}
    np.testing.assert_allclose(pruning.lamp_scores(scaled), truth, rtol=1e-4)


def test_lamp_of_zeros_and_half_precision():
    scores = pruning.lamp_scores({"a": jnp.zeros(3), "b": jnp.array([1e-4, 2e-4], jnp.float16)})
    np.testing.assert_allclose(scores, [0, 0, 0, 0.2, 1], rtol=2e-3)
