"""Bounds and limits with and without jit, against sums over a known spectrum."""

import chex
import jax.numpy as jnp
import numpy as np

from jaxlimit import limits, spectrum

EIGENVALUES = np.geomspace(1e-3, 10, 200).astype(np.float32)
WEIGHTS = np.linspace(0.01, 1, 200).astype(np.float32)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_lower_bound_is_the_effective_dimension(self):
        def bound(eigenvalues, radii):
            return limits.lower_bound(spectrum.exact_measure(eigenvalues), radii, 0.01).value

        radii = jnp.array([0.1, 0.5, 2.0])
        found = self.variant(bound)(jnp.asarray(EIGENVALUES), radii)
        c = 2 * 0.01 / np.asarray(radii)[:, None] ** 2
        chex.assert_shape(found, (3,))
        chex.assert_trees_all_close(
            found, (EIGENVALUES / (EIGENVALUES + c)).mean(1).astype(np.float32), rtol=1e-4
        )

    @chex.variants(with_jit=True, without_jit=True)
    def test_the_limit_meets_its_own_bound(self):
        def limit(eigenvalues, weights):
            return limits.pruning_limit(spectrum.exact_measure(eigenvalues), weights, 0.01)

        found = self.variant(limit)(jnp.asarray(EIGENVALUES), jnp.asarray(WEIGHTS))
        chex.assert_tree_all_finite(found)
        chex.assert_scalar_in(float(found.ratio), 0.0, 1.0)

        def needed(kept):  # what the bound asks for once all but the largest `kept` are removed
            c = 2 * 0.01 / max((np.sort(WEIGHTS)[: 200 - kept] ** 2).sum(), 1e-30)
            return (EIGENVALUES / (EIGENVALUES + c)).sum()

        kept = int(found.num_kept)
        assert needed(kept) <= kept + 1
        assert needed(kept - 1) >= kept - 1
