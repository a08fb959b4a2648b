"""Derivatives of a loss at a point: one Hessian-vector product, and the mean gradient."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit._core import sharding, shares
from jaxlimit._core.batches import check_like, check_scalar
from jaxlimit._core.checks import check_choice, check_floating_tree
from jaxlimit._core.losses import mean_loss
from jaxlimit._core.programs import check_forward_mode, precise_products
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected

HVP_MODES = (
    "forward-over-reverse",
    "reverse-over-forward",
    "reverse-over-reverse",
    "finite-difference",
)


def hvp(loss: Callable, params: Any, tangent: Any, *args: Any, mode: str | None = None) -> Any:
    """Multiply the Hessian of a loss by one tangent.

    H v = ∂/∂t ∇L(w + t v) at t = 0. Costs about two gradients, and their memory. Matrix products
    have the full precision of `params` (no TF32), unless the caller has set a precision.

    Args:
        loss: `loss(params, *args)`, a scalar.
        params: pytree of real floating arrays.
        tangent: v, a pytree like `params`.
        *args: the rest of what `loss` takes.
        mode: "forward-over-reverse" (the fastest), "reverse-over-forward",
            "reverse-over-reverse", or "finite-difference", a central difference of the gradient
            that shares no differentiation rule with the others, good to about ε^(2/3). By default
            the first, or the third where `loss` has functions without a forward mode.

    Returns:
        H v, a pytree like `params`.

    Raises:
        TypeError: if a leaf of `params` or `tangent` is not real floating, or `loss` gives no
            scalar.
        ValueError: if `params` or `tangent` holds NaN or infinity, `tangent` has another structure
            than `params`, or `mode` is unknown.

    >>> import jax.numpy as jnp
    >>> hvp(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
    Array([4., 2.], dtype=float32)

    Pearlmutter (1994).
    """
    if mode is not None:
        check_choice("mode", mode, HVP_MODES)
    check_floating_tree("params", params)
    check_scalar(loss, params, *args)
    check_like("tangent", tangent, params)
    check_floating_tree("tangent", tangent)

    def value(params):
        return loss(params, *args)

    gradient = jax.grad(value)
    forward = lambda p, v: jax.jvp(gradient, (p,), (v,))[1]  # noqa: E731
    with precise_products():
        if mode is None:
            mode = HVP_MODES[0] if _traces(forward, params, tangent) else HVP_MODES[2]
        if mode == "forward-over-reverse":
            return forward(params, tangent)
        if mode == "reverse-over-forward":
            return jax.grad(lambda p: jax.jvp(value, (p,), (tangent,))[1])(params)
        if mode == "reverse-over-reverse":
            return jax.vjp(gradient, params)[1](tangent)[0]
        return _finite_difference(gradient, params, tangent)


def _traces(function: Callable, *args: Any) -> bool:
    try:
        check_forward_mode(function, *args)
    except TypeError:
        return False
    return True


def _finite_difference(gradient: Callable, params: Any, tangent: Any) -> Any:
    dtype = jnp.result_type(*jax.tree.leaves(params))
    scale = (1 + _norm(params)) / jnp.maximum(_norm(tangent), jnp.finfo(dtype).tiny)
    # The cube root balances the rounding of the gradients against the third derivative.
    step = jnp.finfo(dtype).eps ** (1 / 3) * scale

    def shifted(t):
        return gradient(jax.tree.map(lambda p, v: p + t * v, params, tangent))

    return jax.tree.map(lambda a, b: (a - b) / (2 * step), shifted(step), shifted(-step))


def _norm(tree: Any) -> Array:
    return jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))


@takes_mesh
def mean_gradient(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    where: Where = is_weight,
    mesh: Mesh | None = None,
) -> Float[Array, "D"]:
    """Return the gradient of the mean loss over all examples, flat, batch by batch.

    ∇L(w) = (1/N) Σ_b n_b ∇L(w; batch b). Costs one gradient over the data, memory of one batch.

    Args:
        loss: see `hessian_matvec`.
        params: pytree of real floating arrays.
        batches: see `hessian_matvec`.
        *operands: passed on to `loss`.
        where: leaves under study.
        mesh: devices to share the examples; see `pruning.magnitude_sweep`.

    Returns:
        ∇L, flat [D].

    Raises:
        TypeError: as `hessian_matvec`.
        ValueError: as `hessian_matvec`.

    >>> import jax.numpy as jnp
    >>> mean_gradient(lambda w, x: jnp.mean(x @ w), jnp.zeros(2), jnp.eye(2)[None])
    Array([0.5, 0.5], dtype=float32)
    """
    check_floating_tree("params", params, selected(params, where))
    loss, operands = mean_loss(loss, params, batches, operands)
    weights, unflatten = flatten_weights(params, where)
    examples = shares.examples_of(batches, mesh)
    at = sharding.replicate((unflatten, weights, operands), mesh)
    return sharding.local(_gradient(loss, examples, *at), mesh)


@partial(jax.jit, static_argnums=0)
def _gradient(loss, examples, *at):
    def of_batch(batch, unflatten, weights, operands):
        return jax.grad(lambda vector: loss(unflatten(vector), batch, *operands))(weights)

    with precise_products():
        return shares.mean(examples, of_batch, *at)
