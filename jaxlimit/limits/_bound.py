"""The bound that one z̄ proves."""

from typing import NamedTuple

import numpy as np


class Bound(NamedTuple):
    """The bound of one z̄.

    Attributes:
        num_removed: the last n at which it is at most ε.
        price: θ, what the next weight would cost; infinite where there is none.
    """

    num_removed: int
    price: float


def bound_of(slope: np.ndarray, curvature: float, epsilon: float, num_free: int) -> Bound:
    """Evaluate the bound of one z̄: the last n at which it is at most ε.

    Args:
        slope: ∇q(z̄) of the weights that are not set aside.
        curvature: z̄ᵀA z̄.
        epsilon: ε, raised by the slack.
        num_free: how many are set aside, whose slope is 0.
    """
    negative = slope < 0
    left = epsilon + curvature / 2 - float(np.sum(slope, where=negative, dtype=np.float64))
    if not left >= 0:  # not of a convex quadratic, but for rounding: nothing is known
        return Bound(slope.size + num_free, np.inf)
    costly = np.sort(slope[~negative])
    more = int(np.searchsorted(np.cumsum(costly, dtype=np.float64), left, side="right"))
    price = float(costly[more]) if more < costly.size else np.inf
    return Bound(int(negative.sum()) + num_free + more, price)
