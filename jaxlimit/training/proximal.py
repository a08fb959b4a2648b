"""Proximal gradient steps over all examples, from a trained network to the minimum under l1."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxlimit._core import shares
from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.losses import mean_loss
from jaxlimit._core.programs import precise_products
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.training.optimizer import soft_threshold


class ProximalResult(NamedTuple):
    """The end of proximal steps.

    Attributes:
        params: the parameters, with exact zeros.
        loss: the data loss at the start of each step [num_steps].
        gradient: of the data loss at `params`, flat [D].
    """

    params: PyTree
    loss: Float[Array, "s"]
    gradient: Float[Array, "D"]


def proximal_steps(
    loss: Callable,
    params: PyTree,
    batches: Any,
    *operands: Any,
    l1: Any,
    rate: Any,
    num_steps: int,
    accelerate: bool = True,
    where: Where = is_weight,
) -> ProximalResult:
    """Take proximal gradient steps on L(w) + l1·‖w‖₁, each over all examples.

        w ← S(y - rate ∇L(y), rate·l1),   y ← w + (t₋ - 1)/t (w - w₋)

    S is the soft threshold. Without acceleration y = w, and the penalised loss falls in every step
    if rate < 2/λ_max. With it rate ≤ 1/λ_max is safe, and the momentum restarts where it points
    uphill. At the l1 minimum |gᵢ| = l1 on the support and nothing moves (`pruning.l1_residual`).
    Costs a gradient a step; one compiled program.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples.
        params: pytree of real floating arrays.
        batches: see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        l1: strength of the penalty, at least 0.
        rate: rate of the steps, above 0.
        num_steps: number of steps.
        accelerate: whether to use momentum.
        where: leaves that are penalised and moved; the others stay.

    Returns:
        A `ProximalResult`.

    Raises:
        TypeError: as `curvature.mean_gradient`, or if `num_steps` is no static int.
        ValueError: as `curvature.mean_gradient`, or if `l1`, `rate` or `num_steps` is out of range.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, target: 0.5 * jnp.mean(jnp.sum((w - target) ** 2, -1))
    >>> target = jnp.array([[[3.0, -0.5]]])
    >>> proximal_steps(loss, jnp.zeros(2), target, l1=1.0, rate=1.0, num_steps=5).params
    Array([ 2., -0.], dtype=float32)

    Beck, Teboulle (2009), section 4.
    """
    check_range("l1", l1, 0)
    check_range("rate", rate, 0, open_low=True)
    num_steps = check_count("num_steps", num_steps, 0)
    loss, operands = mean_loss(loss, params, batches, operands)
    weights, unflatten = flatten_weights(params, where)
    examples = shares.examples_of(batches, None)
    l1, rate = jnp.asarray(l1, weights.dtype), jnp.asarray(rate, weights.dtype)
    weights, losses, gradient = _steps(
        loss, weights, unflatten, examples, operands, l1, rate, num_steps, accelerate
    )
    return ProximalResult(unflatten(weights), losses, gradient)


@functools.partial(jax.jit, static_argnames=("loss", "num_steps", "accelerate"))
def _steps(loss, weights, unflatten, examples, operands, l1, rate, num_steps, accelerate):
    def mean(weights: Array) -> Array:
        def of_batch(batch, unflatten, weights, operands):
            return loss(unflatten(weights), batch, *operands)

        return shares.mean(examples, of_batch, unflatten, weights, operands)

    def step(carry: tuple, _: None) -> tuple[tuple, Array]:
        now, ahead, t = carry
        value, gradient = jax.value_and_grad(mean)(ahead)
        new = soft_threshold(ahead - rate * gradient, rate * l1)
        uphill = jnp.vdot(ahead - new, new - now) > 0
        following = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * t**2)) / 2)
        beta = jnp.where(uphill, 0.0, (t - 1) / following) if accelerate else 0.0
        return (new, new + beta * (new - now), following), value

    with precise_products():
        first = weights, weights, jnp.ones((), weights.dtype)
        (weights, *_), losses = jax.lax.scan(step, first, length=num_steps)
        return weights, losses, jax.grad(mean)(weights)
