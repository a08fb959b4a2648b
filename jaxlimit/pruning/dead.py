"""Weights that do nothing: those of units with no way in or no way out, whatever the network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, PRNGKeyArray

from jaxlimit._core import magnitudes
from jaxlimit._core.checks import check_key, check_known, check_range
from jaxlimit._core.masks import mask_tree
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, is_weight
from jaxlimit.limits.tolerance import check_mean
from jaxlimit.pruning.masked import (
    MaskedLoss,
    derivatives_at_mask,
    loss_of_mask,
    masked_loss,
    smallest_along,
)


@takes_mesh
def dead_weights(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    key: PRNGKeyArray,
    tolerance: float = 1e-6,
    where: Where = is_weight,
    mesh: Mesh | None = None,
) -> Any:
    """Mark the weights that can be removed together without changing the loss.

    Two kinds are searched for in turn, until neither is found. First, the smallest weights, as many
    as can be removed with the loss within `tolerance`. Second, among the rest, weights with exactly
    (Hξ)ᵢ = 0 and gᵢ = 0, H and g taken at the rest and ξ Gaussian on it. With probability one these
    are the weights with a zero row of H: weights into units that lead nowhere, and out of units
    that are always 0. The architecture need not be known.

    Dead means dead on these examples: a ReLU unit that none of them activates counts as always 0,
    though another example may activate it. The true loss confirms the removal.

    Costs about 2 log₂ D evaluations of the data and one Hessian product a round, mostly two rounds;
    memory of a few vectors [D].

    Args:
        loss: see `magnitude_sweep`.
        params: pytree of real floating arrays.
        batches: see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        key: random key of ξ.
        tolerance: greatest relative change of the loss, in either direction.
        where: which leaves are under study; the others are never dead.
        mesh: devices to share the examples; see `magnitude_sweep`.

    Returns:
        A pytree of Booleans like `params`, True = dead. Weights of 0 are dead.

    Raises:
        TypeError: as `magnitude_sweep`.
        ValueError: as `magnitude_sweep`, or if `tolerance` is negative.

    >>> import jax, jax.numpy as jnp
    >>> net = lambda w, x: jnp.mean((jax.nn.relu(x @ w["into"]) @ w["out"] - 0.5) ** 2)
    >>> params = {"into": jnp.array([[1.0, 3.0, 0.0]]), "out": jnp.array([2.0, 0.0, 5.0])}
    >>> dead_weights(net, params, jnp.ones((1, 4, 1)), key=jax.random.key(0))["into"]
    Array([[False,  True,  True]], dtype=bool)
    """
    check_key("key", key)
    check_known("dead_weights", key=key, params=params)
    check_range("tolerance", tolerance, 0)
    check_mean(loss, params, batches, *operands, mesh=mesh)
    problem = masked_loss(loss, params, batches, operands, where, mesh)
    live = find_live(problem, key, tolerance).live
    kept = mask_tree(jnp.asarray(live), params, where)
    studied = mask_tree(jnp.zeros_like(live), params, where)
    return jax.tree.map(lambda keep, frozen: ~keep & ~frozen, kept, studied)


class Live(NamedTuple):
    """The flat mask of live weights, and the cost of finding it."""

    live: Bool[Array, "D"]
    num_evaluations: int
    num_products: int


def find_live(problem: MaskedLoss, key: PRNGKeyArray, tolerance: float) -> Live:
    """Find the flat mask of live weights; see `dead_weights`."""
    weights = problem.weights
    live = weights != 0
    dense = loss_of_mask(problem, live)
    allowed = tolerance * abs(dense)

    def unchanged(losses: Any) -> np.ndarray:
        return np.abs(np.asarray(losses, np.float64) - dense) <= allowed

    evaluations, products, num_live = 1, 0, -1
    while num_live != (num_live := int(live.sum())) and num_live:
        order = magnitudes.ranks(jnp.where(live, weights, 0))
        smallest = smallest_along(problem, order, unchanged)
        live = live & (order < smallest.num_kept)
        key, draw = jax.random.split(key)
        probe = jnp.where(live, jax.random.normal(draw, weights.shape, weights.dtype), 0)
        gradient, product = derivatives_at_mask(problem, live, probe)
        without = live & ((gradient != 0) | (product != 0))
        evaluations, products = evaluations + smallest.num_evaluations + 1, products + 1
        # A weight that is flat here need not be flat all the way to 0: the loss decides.
        live = without if unchanged(loss_of_mask(problem, without)) else live
    return Live(live, evaluations, products)
