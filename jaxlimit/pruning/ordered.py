"""How far one order of removal can go, by the true loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array, Int

from jaxlimit._core.checks import check_range
from jaxlimit._core.estimate import value_of
from jaxlimit._core.masks import mask_tree
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, check_places, is_weight
from jaxlimit.limits.tolerance import check_mean
from jaxlimit.pruning.masked import losses_along, masked_loss, smallest_along


class SmallestOfOrder(NamedTuple):
    """The smallest mask of an order within ε.

    Attributes:
        mask: pytree like the parameters, True = kept.
        num_kept: weights under study that it keeps.
        ratio: num_kept / D.
        loss: its true loss over all examples.
        num_evaluations: evaluations of the loss over all examples.
    """

    mask: Any
    num_kept: int
    ratio: float
    loss: float
    num_evaluations: int


@takes_mesh
def smallest_of_order(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    order: Int[Array, "D"],
    epsilon: Any,
    where: Where = is_weight,
    mesh: Mesh | None = None,
) -> SmallestOfOrder:
    """Find the smallest mask of one order of removal that keeps the loss within ε.

    Does for a score of your own what `smallest_mask` does for its candidates: halving, bisection,
    and a scan below, since a loss is not monotone in the count. Costs about 50 evaluations of the
    data.

    Args:
        loss: see `magnitude_sweep`.
        params: w, pytree of real floating arrays.
        batches: see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        order: places [D]; the mask of k weights keeps the places below k; see `order_by`.
        epsilon: ε ≥ 0, a number or an `Estimate`.
        where: which leaves are under study; the others are kept.
        mesh: devices to share the examples; see `magnitude_sweep`.

    Returns:
        A `SmallestOfOrder`.

    Raises:
        TypeError: as `magnitude_sweep`, or if `order` holds no integers.
        ValueError: as `magnitude_sweep`, if ε is negative, or `order` is no permutation of the
            weights under study.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: jnp.mean((batch @ (w - jnp.array([3.0, 0.1]))) ** 2)
    >>> w, order = jnp.array([3.0, 0.1]), jnp.array([0, 1])
    >>> smallest_of_order(loss, w, jnp.eye(2)[None], order=order, epsilon=0.01).num_kept
    1
    """
    epsilon = value_of(epsilon)
    check_range("epsilon", epsilon, 0)
    problem = masked_loss(loss, params, batches, operands, where, mesh)
    check_mean(loss, params, batches, *operands, mesh=mesh)
    dim = problem.weights.size
    order = check_places("order", order, dim)
    dense = float(losses_along(problem, order, [dim])[0])
    found = smallest_along(problem, order, lambda losses: losses <= dense + float(epsilon))
    mask = mask_tree(order < found.num_kept, params, where)
    ratio = found.num_kept / dim
    return SmallestOfOrder(mask, found.num_kept, ratio, found.loss, found.num_evaluations + 1)
