"""Estimates of traces with and without jit: exact where nothing is random."""

import chex
import jax
import jax.numpy as jnp

from jaxlimit import traces

DIAGONAL = jnp.arange(1.0, 9.0)
OPERATOR = jax.tree_util.Partial(jnp.multiply, DIAGONAL)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_signs_see_a_diagonal_matrix_exactly(self):
        """vᵀ diag(d) v = Σ d for every v of signs."""

        def estimate(operator, key):
            return traces.hutchinson(operator, key, dim=8, num_matvecs=4)

        found = self.variant(estimate)(OPERATOR, jax.random.key(0))
        chex.assert_tree_all_finite(found)
        chex.assert_trees_all_close(found.value, 36.0, rtol=1e-6)
        chex.assert_trees_all_close(found.standard_error, 0.0, atol=1e-4)

    @chex.variants(with_jit=True, without_jit=True)
    def test_the_diagonal_is_read_exactly(self):
        def estimate(operator, key):
            return traces.diagonal(operator, key, dim=8, num_matvecs=8)

        found = self.variant(estimate)(OPERATOR, jax.random.key(1))
        chex.assert_trees_all_close(jax.tree.leaves(found)[0], DIAGONAL, rtol=1e-5)
