import itertools

import jax
import jax.numpy as jnp
import numpy as np

import jaxlimit
from jaxlimit import curvature, limits, pruning

LOSS = curvature.split_loss(
    lambda w, batch: batch[0] @ w["kernel"] + w["bias"],
    lambda outputs, batch: 0.5 * jnp.mean((outputs - batch[1]) ** 2),
)


def test_one_call_gives_mask_and_pruned_parameters():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 20, 6)), rng.normal(size=6) * [1, 1, 1, 0.01, 0.01, 0]
    y = x @ kernel + 0.1 * rng.normal(size=(2, 20))
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.float32(1e-3)}
    batches = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (x, y))
    epsilon = limits.loss_tolerance_estimate(LOSS, params, batches)
    found = jaxlimit.prune_to(LOSS, params, batches, epsilon=epsilon, key=jax.random.key(0))
    flat = jax.tree.map(lambda leaf: leaf.reshape(40, *leaf.shape[2:]), batches)
    assert LOSS(found.params, flat) <= LOSS(params, flat) + epsilon.value
    pruned = pruning.apply_mask(params, found.mask)
    jax.tree.map(np.testing.assert_array_equal, found.params, pruned)
    assert found.search.num_kept == 3
    np.testing.assert_array_equal(found.mask["kernel"], [1, 1, 1, 0, 0, 0])
    assert repr(found).startswith("PrunedTo: ")


def redundant():
    """A linear model whose columns nearly repeat, so that few can stand for many once refitted."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=(40, 3))
    x = np.concatenate([base + 0.05 * rng.normal(size=base.shape) for _ in range(4)], 1)
    kernel = rng.uniform(0.5, 1.0, 12)
    params = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.float32(0.0)}
    y = x @ kernel + 0.1 * rng.normal(size=40)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf[None], jnp.float32), (x, y))
    return params, data, x, y


def test_refitting_goes_on_to_what_least_squares_can_reach():
    params, data, x, y = redundant()
    alone = jaxlimit.prune_to(LOSS, params, data, epsilon=0.1, key=jax.random.key(0))
    found = jaxlimit.prune_to(LOSS, params, data, epsilon=0.1, key=jax.random.key(0), refit=True)
    limit = LOSS(params, jax.tree.map(lambda leaf: leaf[0], data)) + 0.1
    kept = np.concatenate([np.asarray(found.mask["kernel"]), [bool(found.mask["bias"])]])
    design = np.concatenate([x, np.ones((40, 1))], 1)

    def least(support):
        fit = np.linalg.lstsq(design[:, support], y, rcond=None)[0]
        return 0.5 * np.mean((design[:, support] @ fit - y) ** 2), fit

    loss, weights = least(kept)
    assert found.rounds[-1] == kept.sum() < alone.search.num_kept
    got = np.concatenate([np.asarray(found.params["kernel"]), [float(found.params["bias"])]])
    np.testing.assert_allclose(got[kept], weights, atol=2e-3)
    assert not got[~kept].any()
    assert loss <= limit
    # Of all supports that are smaller still, none is within the tolerance.
    sizes = int(kept.sum()) - 1
    best = min(least(list(c))[0] for c in itertools.combinations(range(13), sizes))
    assert best > limit
    assert found.rounds[0] == alone.search.num_kept
    assert found.num_products > 0 == alone.num_products
    assert "by rounds" in repr(found)


def test_a_refit_of_ones_own_is_masked_and_refused_where_it_is_worse():
    params, data, *_ = redundant()
    spoil = lambda params, mask: jax.tree.map(lambda w: w + 100, params)  # noqa: E731
    alone = jaxlimit.prune_to(LOSS, params, data, epsilon=0.1, key=jax.random.key(0))
    spoiled = jaxlimit.prune_to(
        LOSS, params, data, epsilon=0.1, key=jax.random.key(0), refit=spoil, num_rounds=0
    )
    np.testing.assert_array_equal(spoiled.params["kernel"], alone.params["kernel"])
    called = []

    def mine(params, mask):
        called.append(mask)
        solved = pruning.refit(LOSS, params, data, mask=mask).params
        return jax.tree.map(lambda w, keep: jnp.where(keep, w, 7.0), solved, mask)

    found = jaxlimit.prune_to(LOSS, params, data, epsilon=0.1, key=jax.random.key(0), refit=mine)
    theirs = jaxlimit.prune_to(LOSS, params, data, epsilon=0.1, key=jax.random.key(0), refit=True)
    np.testing.assert_array_equal(found.params["kernel"], theirs.params["kernel"])
    assert len(called) >= len(found.rounds)
