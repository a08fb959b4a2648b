import itertools

import numpy as np
import pytest

from jaxlimit import pruning
from jaxlimit.pruning.polish import exchange

RNG = np.random.default_rng(0)


def problem(n, rank=None, scale=1.0):
    factor = RNG.normal(size=(rank or n, n)) * RNG.uniform(0.1, 2, n) * scale
    return -RNG.uniform(-0.2, 1.0, n) * scale**2, factor


def q(slope, matrix, z):
    return slope @ z + z @ matrix @ z / 2


def by_definition(slope, matrix):
    """Each step by trying every weight that is left."""
    n, z, removed, rises = slope.size, np.zeros(slope.size), [], []
    for _ in range(n):
        left = [i for i in range(n) if z[i] == 0]
        values = [q(slope, matrix, z + np.eye(n)[i]) for i in left]
        removed.append(left[int(np.argmin(values))])
        rises.append(min(values))
        z[removed[-1]] = 1
    return np.array(removed), np.array(rises)


@pytest.mark.parametrize("rank", [None, 3, 1])
def test_every_step_is_the_best_one(rank):
    for _ in range(5):
        slope, factor = problem(14, rank)
        removed, rises = by_definition(slope, factor.T @ factor)
        found = pruning.greedy_order(slope, factor.T @ factor)
        np.testing.assert_array_equal(np.argsort(found.order)[::-1], removed)
        np.testing.assert_allclose(found.rises, rises, rtol=1e-9)


@pytest.mark.parametrize("block_size", [1, 3, 50, 1000])
def test_by_the_factor_in_blocks_as_by_the_matrix(block_size):
    slope, factor = problem(50, 20)
    dense = pruning.greedy_order(slope, factor.T @ factor)
    found = pruning.greedy_order(slope, factor=factor, block_size=block_size)
    np.testing.assert_array_equal(found.order, dense.order)
    np.testing.assert_allclose(found.rises, dense.rises, rtol=1e-9)
    assert found.num_columns >= 50


def test_ties_and_zero_rows():
    found = pruning.greedy_order(np.zeros(4), np.zeros((4, 4)))
    np.testing.assert_array_equal(found.order, [3, 2, 1, 0])
    matrix = np.diag([1.0, 0.0, 1.0])
    np.testing.assert_array_equal(pruning.greedy_order(np.zeros(3), matrix).order, [1, 2, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 5, 1500])
def test_gram_sums_pieces(n, dtype):
    pieces = [RNG.normal(size=(m, n)).astype(dtype) for m in (3, 1, 4)]
    expected = sum(np.float64(piece).T @ piece for piece in pieces)
    found = pruning.gram(iter(pieces), n, dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, expected, atol=40 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(found, found.T)


def test_bad_input():
    slope, factor = problem(3)
    with pytest.raises(ValueError, match="one of matrix and factor"):
        pruning.greedy_order(slope)
    with pytest.raises(ValueError, match="square"):
        pruning.greedy_order(slope, np.ones((2, 3)))
    with pytest.raises(ValueError, match="as many columns"):
        pruning.greedy_order(slope, np.ones((4, 4)))
    with pytest.raises(ValueError, match="finite"):
        pruning.greedy_order(slope, np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="block_size"):
        pruning.greedy_order(slope, factor=factor, block_size=0)
    with pytest.raises(ValueError, match="matrix must be symmetric"):
        pruning.greedy_order(slope, np.triu(np.ones((3, 3))))


def test_exchanges_keep_their_books_and_never_pass_the_budget():
    for _ in range(20):
        slope, factor = problem(10)
        matrix, budget = factor.T @ factor, RNG.uniform(0, 8)
        start = RNG.random(10) < 0.3
        rise = q(slope, matrix, start)
        budget = max(budget, rise)
        moved = exchange(slope + matrix @ start, matrix, start, rise, budget=budget, max_moves=99)
        np.testing.assert_allclose(moved.rise, q(slope, matrix, moved.removed), rtol=1e-9)
        assert moved.rise <= budget
        assert moved.removed.sum() >= start.sum()
        assert moved.num_moves < 99
        # No single move is left: neither a removal nor an exchange that lowers q.
        for i in np.flatnonzero(~moved.removed):
            assert q(slope, matrix, moved.removed + np.eye(10)[i]) > budget


def test_exchanges_find_what_greedy_misses():
    """Over all masks of random quadratics: exchanges close some of greedy's distance."""
    missed, left = 0, 0
    for _ in range(30):
        slope, factor = problem(9, 4)
        matrix, budget = factor.T @ factor, 4.0
        masks = [np.array(z) for z in itertools.product([0, 1], repeat=9)]
        best = max(z.sum() for z in masks if q(slope, matrix, z) <= budget)
        removal = pruning.greedy_order(slope, matrix)
        num = max(np.flatnonzero(removal.rises <= budget) + 1, default=0)
        start = removal.order >= 9 - num
        rise = q(slope, matrix, start)
        at = slope + matrix @ start
        moved = exchange(at, matrix, start, rise, budget=budget, max_moves=99)
        assert num <= moved.removed.sum() <= best
        missed, left = missed + best - num, left + best - moved.removed.sum()
    assert left <= missed
    assert missed <= 15  # half a weight of nine
