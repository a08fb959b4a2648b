"""Greedy removal on new quadratics at the masks on the way."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxlimit.pruning.greedy import gram, greedy_order
from jaxlimit.pruning.masked import MaskedLoss, derivatives_at_mask, loss_of_mask

_STEPS = (0.25, 0.1, 0.04)
MOST_ROUNDS = 16


class Stepwise(NamedTuple):
    """An order of removal, and the number of quadratics used."""

    order: Int[np.ndarray, "D"]
    num_rounds: int


def stepwise_order(
    problem: MaskedLoss,
    order: Int[Any, "D"],
    kept: Bool[np.ndarray, "D"],
    rows_at: Callable[[Any, Bool[np.ndarray, "D"]], Any],
    *,
    limit: float,
) -> Stepwise:
    """Remove weights greedily, some at a time, by the quadratic at the mask so far.

    Far from w the quadratic at w says little. Here the gradient and A are taken at the current
    mask, and a share of what is left is removed by the greedy order there, as long as the true loss
    stays within the limit: first a quarter at a time, then a tenth, then a twenty-fifth. For a
    quadratic loss the order is that of `greedy_order`. Each quadratic costs a gradient, the rows of
    A and 2n² flops a row; memory of A on what is left.

    Args:
        problem: the masked loss.
        order: places [D] of the weights outside `kept`, which come after all of `kept`.
        kept: weights in the search [D]; the loss of their mask is within `limit`.
        rows_at: `rows_at(weights, mask)`, pieces of the rows of G's factor at `weights` on `mask`.
        limit: the greatest loss that passes.

    Returns:
        A `Stepwise`.
    """
    order, kept = np.array(order), np.array(kept)
    weights, zeros = np.asarray(problem.weights), jnp.zeros_like(problem.weights)
    step, rounds = 0, 0
    while kept.any() and rounds < MOST_ROUNDS:
        rounds += 1
        where = np.flatnonzero(kept)
        gradient, _ = derivatives_at_mask(problem, jnp.asarray(kept), zeros)
        pieces = (piece * weights[where] for piece in rows_at(jnp.where(kept, weights, 0), kept))
        matrix = gram(pieces, where.size, weights.dtype)
        slope = -weights[where] * np.asarray(gradient)[where]
        order[where] = greedy_order(slope, matrix).order
        while step < len(_STEPS):
            left = int(where.size * (1 - _STEPS[step]))
            fewer = kept & (order < left)
            if left < where.size and loss_of_mask(problem, jnp.asarray(fewer)) <= limit:
                break
            step += 1
        else:
            break
        kept = fewer
    return Stepwise(order, rounds)
