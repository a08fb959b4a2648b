"""Products with and without jit, against a dense Hessian."""

import chex
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxlimit import curvature

PARAMS = {"w": jnp.linspace(-1, 1, 6).reshape(3, 2), "v": jnp.array([0.5, -0.25])}
BATCH = jax.random.normal(jax.random.key(0), (1, 5, 3))


def loss(params, batch):
    return jnp.mean(jnp.tanh(batch @ params["w"]) @ params["v"] ** 3)


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_a_product_is_that_of_the_dense_hessian(self):
        flat, unravel = ravel_pytree(PARAMS)
        dense = jax.hessian(lambda w: loss(unravel(w), BATCH[0]))(flat)
        matvec = curvature.hessian_matvec(loss, PARAMS, BATCH)
        vector = jax.random.normal(jax.random.key(1), flat.shape)
        found = self.variant(matvec)(vector)
        chex.assert_equal_shape([found, vector])
        chex.assert_trees_all_close(found, dense @ vector, rtol=1e-4, atol=1e-5)
