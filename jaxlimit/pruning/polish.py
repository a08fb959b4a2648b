"""Improve a mask by exchanging removed weights for others, judged by the true loss."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxlimit.pruning.masked import MaskedLoss, derivatives_at_mask, loss_of_mask

_MOST_MOVES = 64


class Exchanged(NamedTuple):
    """The result of exchanges: which weights are removed, q there, and the number of moves."""

    removed: Bool[np.ndarray, "n"]
    rise: float
    num_moves: int


def exchange(
    slope: Float[np.ndarray, "n"],
    matrix: Float[np.ndarray, "n n"],
    removed: Bool[np.ndarray, "n"],
    rise: float,
    *,
    budget: float,
    max_moves: int,
) -> Exchanged:
    """Remove more weights within a budget of the quadratic, or exchange some where none fits.

    A move removes the weight that raises q least, if q stays within `budget`. Otherwise it restores
    the weight that lowers q most and removes the best other one in its place, if q falls by this.
    Each move costs O(n) and lowers q or the number kept, so the moves end.

    Args:
        slope: ∇q at `removed` [n].
        matrix: A [n, n].
        removed: the removal to start from, True = removed [n].
        rise: q there.
        budget: the greatest q allowed.
        max_moves: the most moves.

    Returns:
        An `Exchanged`.

    >>> import numpy as np
    >>> A, none = np.diag([2.0, 4.0, 6.0]), np.zeros(3, bool)
    >>> exchange(np.zeros(3), A, none, 0.0, budget=3.5, max_moves=9).removed
    array([ True,  True, False])
    """
    slope, removed = np.array(slope, np.float64), np.array(removed)
    half = np.diagonal(matrix) / 2
    for move in range(max_moves):
        i = int(np.where(removed, np.inf, slope + half).argmin())
        if not removed[i] and rise + slope[i] + half[i] <= budget:
            rise += slope[i] + half[i]
            slope += matrix[i]
            removed[i] = True
            continue
        j = int(np.where(removed, half - slope, np.inf).argmin())
        without = slope - matrix[j]
        i = int(np.where(removed, np.inf, without + half).argmin())
        change = half[j] - slope[j] + without[i] + half[i]
        if not removed[j] or removed[i] or not change < -1e-9 * abs(rise):
            return Exchanged(removed, float(rise), move)
        rise, slope = rise + change, without + matrix[i]
        removed[j], removed[i] = False, True
    return Exchanged(removed, float(rise), max_moves)


class Polished(NamedTuple):
    """A mask after polishing, its loss, and the number of gradients of the loss used."""

    mask: Bool[np.ndarray, "D"]
    loss: float
    num_gradients: int


def polish(
    problem: MaskedLoss,
    mask: Bool[np.ndarray, "D"],
    loss: float,
    support: Bool[np.ndarray, "D"],
    matrix: Float[np.ndarray, "n n"],
    *,
    limit: float,
    max_rounds: int = 32,
) -> Polished:
    """Exchange weights of a mask while fewer are kept or the true loss falls, within a limit.

    Each round takes the true gradient at the mask, and by it and the given A makes some moves of
    `exchange` on the support. A round whose true loss is above the limit, or that gains
    nothing, is undone and tried again with half as many moves. Costs a gradient and an evaluation a
    round.

    Args:
        problem: the masked loss.
        mask: True = kept, with a loss within `limit`.
        loss: its true loss.
        support: weights that may be moved; the others stay as they are.
        matrix: A = diag(w) G diag(w) on the support.
        limit: the greatest loss that passes.
        max_rounds: the most rounds.

    Returns:
        A `Polished`, never worse than the mask given.
    """
    where = np.flatnonzero(support)
    weights = np.asarray(problem.weights)[where]
    zeros = jnp.zeros_like(problem.weights)
    mask, moves, rounds = np.array(mask), _MOST_MOVES, 0
    while moves and rounds < max_rounds:
        rounds += 1
        gradient, _ = derivatives_at_mask(problem, jnp.asarray(mask), zeros)
        # At the mask, zᵢ = 1 means that wᵢ is removed; ∂q/∂zᵢ = -wᵢgᵢ in both cases.
        slope = -weights * np.asarray(gradient)[where]
        settings = {"budget": limit, "max_moves": moves}
        moved = exchange(slope, matrix, ~mask[where], loss, **settings)
        if not moved.num_moves:
            break
        tried = mask.copy()
        tried[where] = ~moved.removed
        new = loss_of_mask(problem, jnp.asarray(tried))
        fewer = tried.sum() - mask.sum()
        if new <= limit and (fewer < 0 or (fewer == 0 and new < loss)):
            mask, loss = tried, new
        else:
            moves = min(moves, moved.num_moves) // 2
    return Polished(mask, loss, rounds)
