"""Prune to a tolerance: ε in, mask, pruned parameters and certificate out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from jaxlimit import curvature, limits, pruning
from jaxlimit._core.checks import check_count, check_known
from jaxlimit._core.estimate import value_of
from jaxlimit._core.masks import mask_tree
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.pruning import MaskSearch
from jaxlimit.pruning.masked import loss_at, masked_loss

_NUM_PROBES = 32
# The factor of what a round may spend after one whose true loss was too high.
_CAUTION = 0.25


class PrunedTo(NamedTuple):
    """A network pruned as far as the search found within ε.

    Attributes:
        mask: pytree like the parameters, True = kept.
        params: the parameters, 0 where the mask is False; refitted if that was asked for.
        certificate: how few weights any mask keeps in the quadratic model of the network that the
            last search started from, without further refitting; None without one.
        search: the last search, with its candidates, counts and losses; with refitting it is that
            on the refitted network.
        rounds: with refitting, the weights left after each round; the first number is without.
        num_products: products of the curvature in the rounds, without those of the searches.
    """

    mask: Any
    params: Any
    certificate: Any
    search: MaskSearch
    rounds: tuple[int, ...] = ()
    num_products: int = 0

    def __repr__(self) -> str:
        """Show the table of the search, and what the rounds kept."""
        said = repr(self.search).replace("MaskSearch", "PrunedTo", 1)
        if not self.rounds:
            return said
        return f"{said}\n  by rounds: {', '.join(f'{count:,}' for count in self.rounds)}"


class _Data(NamedTuple):
    """The arguments that all rounds share."""

    loss: Callable
    batches: Any
    operands: tuple
    where: Where
    mesh: Any
    refit: Any
    key: PRNGKeyArray


def prune_to(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    epsilon: Any,
    key: PRNGKeyArray,
    refit: bool | Callable[[Any, Any], Any] = False,
    num_rounds: int = 20,
    where: Where = is_weight,
    **settings: Any,
) -> PrunedTo:
    """Prune a trained network as far as its loss rises by at most ε.

    No ratio is needed: `pruning.smallest_mask` searches for the smallest mask. With `refit`, the
    kept weights are refitted and rounds follow. Each spends the fall of the loss on the quadratic
    of the refitted network (`limits.refitted_rounds`) and refits what is kept on the true loss. It
    counts if the loss is then within ε; otherwise the next round spends a quarter. A last search on
    the refitted network gives both sides there. The loss at the end is at most L(w) + ε. Costs the
    search twice, and `limits.refitted_rounds` and `pruning.refit` in each round; memory as these.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples, in evaluation
            mode; split (`curvature.split_loss`, `training.make_loss`) for a certificate.
        params: w, pytree of real floating arrays.
        batches: the data of the loss; see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        epsilon: ε, the tolerated rise, at least 0, as from `limits.loss_tolerance`.
        key: random key of the probes.
        refit: True for `pruning.refit`; or a function `refit(params, mask)` that returns
            parameters, such as a training of your own. Its result is used if it lowers the loss;
            its values of removed weights are ignored.
        num_rounds: the most rounds with refitting.
        where: which leaves are under study; the others stay.
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
    >>> twice = jnp.array([[[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])  # the first can stand for both
    >>> prune_to(
    ...     loss, target, twice, epsilon=0.3, key=jax.random.key(0), refit=True).params.round(3)
    Array([5., 0., 0.], dtype=float32)
    """
    check_known("prune_to", key=key, params=params)
    check_count("num_rounds", num_rounds, 0)
    settings = {**settings, "where": where}
    search = pruning.smallest_mask(
        loss, params, batches, *operands, epsilon=epsilon, key=key, **settings
    )
    mask = search.mask
    params = pruning.apply_mask(params, mask)
    if not refit:
        return PrunedTo(mask, params, search.certificate, search)
    data = _Data(loss, batches, operands, where, settings.get("mesh"), refit, key)
    limit = search.dense_loss + float(value_of(epsilon))
    progress = _Progress([search.num_kept])
    params, mask, now = _in_rounds(data, params, mask, limit, num_rounds, progress)
    last = pruning.smallest_mask(
        loss, params, batches, *operands, epsilon=max(limit - now, 0.0),
        key=jax.random.fold_in(key, 1), **settings,
    )  # fmt: skip
    if last.num_kept < progress.counts[-1]:
        mask = jax.tree.map(lambda new, old: new & old, last.mask, mask)
        params, _ = _refitted(data, pruning.apply_mask(params, mask), mask, progress)
        progress.counts.append(last.num_kept)
    return PrunedTo(
        mask, params, last.certificate, last, tuple(progress.counts), progress.num_products
    )


@dataclass
class _Progress:
    """The weights left after each round, and the cost of the rounds."""

    counts: list[int]
    num_products: int = 0


def _in_rounds(
    data: _Data, params: Any, mask: Any, limit: float, num_rounds: int, progress: _Progress
) -> tuple[Any, Any, float]:
    """Refit, and remove more while the loss stays below `limit`."""
    (params, now), share = _refitted(data, params, mask, progress), 1.0
    for i in range(num_rounds):
        left, key = max(limit - now, 0.0), jax.random.fold_in(data.key, 2 + i)
        found, start, smaller = _bite(data, params, share * left, key)
        progress.num_products += found.num_products
        if found.num_kept >= progress.counts[-1]:
            break
        tried, loss = _refitted(data, start, smaller, progress)
        if loss <= limit:
            params, mask, now = tried, smaller, loss
            progress.counts.append(found.num_kept)
        else:
            share *= _CAUTION
    return params, mask, now


def _bite(data: _Data, params: Any, epsilon: float, key: PRNGKeyArray) -> tuple:
    """Remove what the refitted quadratic allows within ε; return its minimiser."""
    split = isinstance(data.loss, curvature.Split)
    at = (data.loss, params, data.batches, *data.operands)
    settings = {"where": data.where, "mesh": data.mesh}
    make = curvature.gauss_newton_matvec if split else curvature.fisher_matvec
    diagonal = curvature.diagonal(
        *at, matrix="gauss-newton" if split else "fisher", num_probes=_NUM_PROBES, key=key,
        **settings,
    )  # fmt: skip
    weights, unflatten = flatten_weights(params, data.where)
    gradient = curvature.mean_gradient(*at, **settings)
    found = limits.refitted_rounds(
        make(*at, **settings), gradient, weights, epsilon, diagonal=diagonal
    )
    return found, unflatten(found.weights), mask_tree(found.kept, params, data.where)


def _refitted(data: _Data, params: Any, mask: Any, progress: _Progress) -> tuple[Any, float]:
    """Refit what is kept; return the better of both parameters, with its loss."""

    def measured(params: Any) -> tuple[Any, float]:
        problem = masked_loss(data.loss, params, data.batches, data.operands, data.where, data.mesh)
        return params, loss_at(problem, problem.weights)

    before = measured(params)
    if not np.isfinite(before[1]):
        return before
    if callable(data.refit):
        after = measured(pruning.apply_mask(data.refit(params, mask), mask))
        return after if after[1] < before[1] else before
    found = pruning.refit(
        data.loss, params, data.batches, *data.operands, mask=mask, where=data.where, mesh=data.mesh
    )
    progress.num_products += found.num_products
    return found.params, found.loss
