"""The optax chain of a training step, and the proximal operator in it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from jaxlimit._core.weights import Where, is_weight, selected


def penalised(params: PyTree, where: Where = is_weight) -> PyTree:
    """Mark the leaves on which the penalties act.

    >>> penalised({"Dense_0": {"bias": 0.0}, "BatchNorm_0": {"bias": 0.0}})
    {'BatchNorm_0': {'bias': False}, 'Dense_0': {'bias': True}}
    """
    return jax.tree.unflatten(jax.tree.structure(params), selected(params, where))


def soft_threshold(x: Float[Array, "..."], threshold: Any) -> Float[Array, "..."]:
    """Apply the proximal operator of `threshold`·|x|: sign(x)·max(|x| - threshold, 0).

    >>> import jax.numpy as jnp
    >>> soft_threshold(jnp.array([-3.0, 0.5]), 1.0).tolist()
    [-2.0, 0.0]
    """
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def sgd(
    rate: Any, momentum: Any, l1: Any, l2: Any, *, proximal: bool, where: Where = is_weight
) -> optax.GradientTransformation:
    """Chain penalties, momentum and rate as `TrainingConfig` states them; numbers may be traced.

    Args:
        rate: η of the step.
        momentum: μ.
        l1: strength of the l1 penalty.
        l2: strength of the l2 penalty.
        proximal: whether l1 acts by the soft threshold after the step, else by its subgradient.
        where: which leaves the penalties act on.

    Returns:
        The transformation of the gradient of the data loss to an update; it needs the parameters.

    >>> import jax.numpy as jnp
    >>> params = {"kernel": jnp.array([1.0, 0.01])}
    >>> gradient = {"kernel": jnp.array([0.5, 0.0])}
    >>> optimizer = sgd(0.1, 0.0, 0.2, 0.0, proximal=True)
    >>> update, _ = optimizer.update(gradient, optimizer.init(params), params)
    >>> optax.apply_updates(params, update)["kernel"]  # S(1 - 0.05, 0.02), S(0.01, 0.02)
    Array([0.93, 0.  ], dtype=float32)
    """

    def pull(gradient: PyTree, params: PyTree) -> PyTree:
        def one(g: Array, w: Array, on: bool) -> Array:
            if not on:
                return g
            return g + l2 * w if proximal else g + (l1 * jnp.sign(w) + l2 * w)

        return jax.tree.map(one, gradient, params, penalised(params, where))

    def shrink(update: PyTree, params: PyTree) -> PyTree:
        threshold = rate * l1 / (1 - momentum)
        return jax.tree.map(
            lambda u, w, on: soft_threshold(w + u, threshold) - w if on else u,
            update,
            params,
            penalised(params, where),
        )

    return optax.chain(
        optax.stateless(pull),
        optax.trace(momentum),
        optax.scale_by_learning_rate(rate),
        optax.stateless(shrink) if proximal else optax.identity(),
    )


def climb(params: PyTree, gradient: PyTree, radius: Any, mask: PyTree = None) -> PyTree:
    """Return w + radius·g/‖g‖, the norm over all parameters; w where g = 0 or the mask is False.

    >>> import jax.numpy as jnp
    >>> climb(jnp.zeros(2), jnp.array([3.0, 4.0]), 0.5).tolist()
    [0.3..., 0.4...]
    """
    if mask is not None:
        gradient = jax.tree.map(lambda g, keep: jnp.where(keep, g, 0), gradient, mask)
    norm = optax.tree.norm(gradient)
    scale = radius / jnp.where(norm > 0, norm, 1)
    return jax.tree.map(lambda w, g: (w + scale * g).astype(w.dtype), params, gradient)


def penalty(params: PyTree, l1: Any, l2: Any, *, where: Where = is_weight) -> Float[Array, ""]:
    """Return l1·‖w‖₁ + ½·l2·‖w‖² over the penalised leaves."""
    terms = jax.tree.map(
        lambda w, on: l1 * jnp.abs(w).sum() + 0.5 * l2 * (w**2).sum() if on else 0.0,
        params,
        penalised(params, where),
    )
    return sum(jax.tree.leaves(terms), jnp.zeros(()))
