"""The bound of one z̄ against its definition, count by count."""

import numpy as np
import pytest

from jaxlimit.limits import _bound
from jaxlimit.limits._bound import bound_of


def by_definition(slope, curvature, epsilon, num_free):
    """The last n with -½ z̄ᵀA z̄ + (the n smallest) ≤ ε, and what comes next of those not free."""
    costs = np.sort(np.append(slope, np.zeros(num_free)))
    bounds = -curvature / 2 + np.append(0, np.cumsum(costs))
    if not bounds.min() <= epsilon:
        return len(costs), np.inf
    last = int(np.flatnonzero(bounds <= epsilon).max())
    return last, costs[last] if last < len(costs) else np.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
def test_the_bound_is_its_definition(dtype, piece, monkeypatch):
    monkeypatch.setattr(_bound, "_PIECE", piece)
    rng = np.random.default_rng(0)
    for _ in range(200):
        # In eighths, so that sums are exact and meet ε often.
        slope = rng.integers(-6, 7, rng.integers(1, 9)) / 8
        curvature, epsilon = rng.integers(0, 9) / 4, rng.integers(0, 12) / 8
        num_free = int(rng.integers(0, 3))
        found = bound_of(slope.astype(dtype), curvature, epsilon, num_free)
        assert found == by_definition(slope, curvature, epsilon, num_free)


def test_sums_are_in_float64():
    slope = np.array([-(2**25), -1, -1, -1, 2**25, 4], np.float32)
    assert bound_of(slope.copy(), 0.0, 0.0, 0) == (5, 2.0**25)
    assert bound_of(slope.copy(), 0.0, 1.0, 0) == (6, np.inf)
    costs = np.array([2.0**25, 2.0**25 + 4, 2.0**26], np.float32)
    assert bound_of(costs.copy(), 0.0, 2.0**27 + 3, 0) == (2, 2.0**26)
    assert bound_of(costs.copy(), 0.0, 2.0**27 + 4, 0) == (3, np.inf)


def test_nothing_is_known_of_what_is_no_convex_quadratic():
    for curvature, epsilon in ((np.nan, 0.0), (-2.0, 0.5), (0.0, np.nan)):
        assert bound_of(np.array([1.0, 2.0]), curvature, epsilon, 3) == (5, np.inf)
    assert bound_of(np.array([1.0, 2.0]), -1.0, 0.5, 3) == (3, 1.0)  # 0 is left, and enough
