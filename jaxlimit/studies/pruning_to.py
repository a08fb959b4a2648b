"""Prune to a tolerance: ε in, mask, pruned parameters and certificate out."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import PRNGKeyArray

from jaxlimit import pruning
from jaxlimit.pruning import MaskSearch


class PrunedTo(NamedTuple):
    """A network pruned as far as the search found within ε.

    Attributes:
        mask: pytree like the parameters, True = kept.
        params: the parameters, 0 where the mask is False.
        certificate: the bound below all masks, of the quadratic model; None where there is none.
        search: what it was chosen from, with the counts and losses.
    """

    mask: Any
    params: Any
    certificate: Any
    search: MaskSearch

    def __repr__(self) -> str:
        """Show the search's table."""
        return repr(self.search).replace("MaskSearch", "PrunedTo", 1)


def prune_to(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    epsilon: Any,
    key: PRNGKeyArray,
    **settings: Any,
) -> PrunedTo:
    """Prune a trained network as far as its loss stays within ε of what it was.

    No ratio is asked for: `pruning.smallest_mask` searches for the smallest mask. Costs and memory
    are its own.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples, in evaluation
            mode; split (`curvature.split_loss`, `training.make_loss`) for a certificate.
        params: w, pytree of real floating arrays.
        batches: see `curvature.hessian_matvec`; what the loss is to hold on.
        *operands: passed on to `loss`.
        epsilon: ε, the tolerated rise, at least 0, as from `limits.loss_tolerance`.
        key: random key of probes.
        **settings: further settings of `pruning.smallest_mask`.

    Returns:
        A `PrunedTo`.

    Raises:
        TypeError: as `pruning.smallest_mask`.
        ValueError: as `pruning.smallest_mask`.
        FloatingPointError: as `pruning.smallest_mask`.

    >>> import jax, jax.numpy as jnp
    >>> from jaxlimit.curvature import split_loss
    >>> target = jnp.array([3.0, 2.0, 1.0])
    >>> loss = split_loss(lambda w, x: x @ (w - target), lambda y, x: 0.5 * jnp.mean(y**2))
    >>> x = jnp.diag(jnp.array([0.1, 1.0, 1.0]))[None]
    >>> prune_to(loss, target, x, epsilon=0.2, key=jax.random.key(0)).params
    Array([0., 2., 0.], dtype=float32)
    """
    search = pruning.smallest_mask(
        loss, params, batches, *operands, epsilon=epsilon, key=key, **settings
    )
    pruned = pruning.apply_mask(params, search.mask)
    return PrunedTo(search.mask, pruned, search.certificate, search)
