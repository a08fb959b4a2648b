"""Small networks trained with l1 to a minimum, apart from the library's own loop."""

from functools import partial

import jax
import jax.numpy as jnp


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


@partial(jax.jit, static_argnames=("loss", "num_steps"))
def annealed(loss, params, data, *, rate, l1, num_steps):
    """Take full batches with momentum 0.9, the rate going to zero as a cosine."""

    def step(state, rate):
        params, velocity = state
        gradient = jax.grad(loss)(params, data)
        velocity = jax.tree.map(
            lambda v, g, w: 0.9 * v + g + l1 * jnp.sign(w), velocity, gradient, params
        )
        return (jax.tree.map(lambda w, v: w - rate * v, params, velocity), velocity), None

    rates = rate * (1 + jnp.cos(jnp.linspace(0, jnp.pi, num_steps))) / 2
    return jax.lax.scan(step, (params, jax.tree.map(jnp.zeros_like, params)), rates)[0][0]
