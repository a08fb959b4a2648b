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
