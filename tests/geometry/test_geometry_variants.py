"""Cones and sets give the same with and without jit, against closed forms."""

import chex
import jax
import jax.numpy as jnp

from jaxlimit import geometry


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_the_polar_of_a_circular_cone_is_a_circular_cone(self):
        """Of half-angle π/2 - α about the opposite axis, its part orthogonal to the other's."""
        project = geometry.circular_cone_projection(0.4)
        opposite = geometry.circular_cone_projection(jnp.pi / 2 - 0.4)
        x = jax.random.normal(jax.random.key(0), (7,))
        flip = jnp.ones(7).at[0].set(-1)
        polar = self.variant(geometry.polar_projection(project))(x)
        chex.assert_equal_shape([polar, x])
        chex.assert_trees_all_close(polar, flip * opposite(flip * x), rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(polar @ self.variant(project)(x), 0.0, atol=1e-5)

    @chex.variants(with_jit=True, without_jit=True)
    def test_the_orthant_meets_subspaces_by_the_binomial(self):
        """Its intrinsic volumes are those of fair coins, of mean D/2."""
        volumes = self.variant(lambda: geometry.intrinsic_volumes_orthant(dim=9))()
        chex.assert_shape(volumes, (10,))
        chex.assert_tree_all_finite(volumes)
        chex.assert_trees_all_close(volumes.sum(), 1.0, rtol=1e-6)
        chex.assert_trees_all_close(volumes @ jnp.arange(10.0), 4.5, rtol=1e-6)
