"""Masks with and without jit, against a sort on the host."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import pruning

PARAMS = {
    "a": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)},
    "b": {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)},
}


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_the_largest_magnitudes_are_kept(self):
        def prune(params):
            mask = pruning.magnitude_mask(params, 0.25)
            return mask, pruning.apply_mask(params, mask)

        mask, pruned = self.variant(prune)(PARAMS)
        chex.assert_trees_all_equal_structs(mask, PARAMS, pruned)
        chex.assert_trees_all_equal_shapes(mask, PARAMS)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(PARAMS)])
        least = np.sort(np.abs(flat))[-8]  # a quarter of 32
        wanted = jax.tree.map(lambda leaf: np.abs(np.asarray(leaf)) >= least, PARAMS)
        chex.assert_trees_all_equal(jax.tree.map(np.asarray, mask), wanted)
        chex.assert_trees_all_equal(
            pruned, jax.tree.map(lambda leaf, keep: jnp.where(keep, leaf, 0), PARAMS, wanted)
        )
