"""The bound on the number of removed weights that one z̄ proves."""

from typing import NamedTuple

import numpy as np

_PIECE = 1 << 20


class Bound(NamedTuple):
    """The bound of one z̄.

    Attributes:
        num_removed: the last n at which it is at most ε.
        price: θ, the rise that the next weight would add; infinite where there is none.
    """

    num_removed: int
    price: float


def bound_of(slope: np.ndarray, curvature: float, epsilon: float, num_free: int) -> Bound:
    """Evaluate the bound of one z̄.

    Sums are in float64, and no other array of the size of the slope is made.

    Args:
        slope: ∇q(z̄) of the weights that are not set aside; sorted in place.
        curvature: z̄ᵀA z̄.
        epsilon: ε, raised by the slack.
        num_free: how many are set aside, whose slope is 0.
    """
    slope.sort()
    num = int(np.searchsorted(slope, slope.dtype.type(0)))  # of another type it would be copied
    left = epsilon + curvature / 2 - float(np.sum(slope[:num], dtype=np.float64))
    if not left >= 0:  # not of a convex quadratic, but for rounding: nothing is known
        return Bound(slope.size + num_free, np.inf)
    while num < slope.size:
        costs = np.cumsum(slope[num : num + _PIECE], dtype=np.float64)
        more = int(np.searchsorted(costs, left, side="right"))
        num += more
        if more < costs.size:
            return Bound(num + num_free, float(slope[num]))
        left -= float(costs[-1])
    return Bound(num + num_free, np.inf)
