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


def test_an_order_of_budgets_passes_through_each_of_them():
    rng = np.random.default_rng(1)
    weights = rng.normal(size=30)
    layers = {"a": np.arange(30) < 12, "b": np.arange(30) >= 12}
    counts = [{"a": 1, "b": 4}, {"a": 5, "b": 4}, {"a": 9, "b": 10}]
    order = np.asarray(pruning.order_by_counts(weights, layers, counts))
    assert sorted(order) == list(range(30))
    for budget in counts:
        kept = order < sum(budget.values())
        for name, mask in layers.items():
            assert kept[mask].sum() == budget[name]
            inside = np.abs(weights[mask])
            assert inside[kept[mask]].min() >= inside[~kept[mask]].max()
    with pytest.raises(ValueError, match="must not fall"):
        pruning.order_by_counts(weights, layers, counts[::-1])
    with pytest.raises(ValueError, match="once"):
        pruning.order_by_counts(weights, {"a": layers["a"]}, counts)
    with pytest.raises(ValueError, match="layers"):
        pruning.order_by_counts(weights, layers, [{"a": 1}])


def test_the_smallest_of_an_order_is_that_of_a_count_by_count_search():
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(3, 8, 20)), jnp.float32)
    w = jnp.asarray(rng.laplace(size=20), jnp.float32)
    loss = lambda v, batch: jnp.mean((batch @ (v - w)) ** 2)  # noqa: E731
    order = jnp.asarray(rng.permutation(20))
    found = pruning.smallest_of_order(loss, w, x, order=order, epsilon=2.0)
    losses = [float(jnp.mean((x @ (jnp.where(order < k, w, 0) - w)) ** 2)) for k in range(21)]
    assert found.num_kept == min(k for k in range(21) if losses[k] <= 2.0)
    np.testing.assert_allclose(found.loss, losses[found.num_kept], rtol=1e-5)
    assert np.array_equal(found.mask, order < found.num_kept)
    with pytest.raises(ValueError, match="order"):
        pruning.smallest_of_order(loss, w, x, order=jnp.zeros(20, int), epsilon=2.0)
    with pytest.raises(ValueError, match="epsilon"):
        pruning.smallest_of_order(loss, w, x, order=order, epsilon=-1.0)
