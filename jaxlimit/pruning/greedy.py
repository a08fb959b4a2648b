"""Greedy removal on the quadratic model of the loss, one weight at a time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxlimit._core.checks import check_count

_BLOCK = 1024
LOOKED_AT = 256  # rows of a matrix that are compared with its columns

Columns = Callable[[Int[np.ndarray, "b"]], Float[np.ndarray, "b n"]]


class Removal(NamedTuple):
    """An order of removal on the quadratic, with the quadratic's values along it.

    Attributes:
        order: places [n]: a mask of k weights keeps the places below k.
        rises: q after each removal [n], in units of the loss.
        num_columns: columns of A that were formed.
    """

    order: Int[np.ndarray, "n"]
    rises: Float[np.ndarray, "n"]
    num_columns: int


def greedy_order(
    slope: Float[np.ndarray, "n"],
    matrix: Float[np.ndarray, "n n"] | None = None,
    *,
    factor: Float[np.ndarray, "m n"] | None = None,
    block_size: int = 2048,
) -> Removal:
    """Remove one weight after the other, always the one that raises the quadratic least.

    q(z) = slopeᵀz + ½ zᵀAz, z in {0, 1}ⁿ the weights removed; with A = diag(w) G diag(w) and slope
    = -w∘g it forecasts the rise of the loss. Each step takes i = argmin ∇q(z)ᵢ + ½Aᵢᵢ among what is
    left, and adds column i of A to ∇q(z): no step rests on a stale gradient. Ties: the lower index
    goes first.

    With the dense matrix: n steps of O(n), memory of A. With its factor, A = BᵀB: columns are
    formed in blocks, those that the current gradient puts next, until another column is next. The
    same order, for 2mn flops a column and memory of B and n · block_size numbers.

    Args:
        slope: ∇q(0) [n].
        matrix: A [n, n], symmetric.
        factor: B [m, n], in place of `matrix`.
        block_size: columns formed at a time from the factor.

    Returns:
        A `Removal`.

    Raises:
        ValueError: if neither or both of `matrix` and `factor` are given, shapes do not match,
            something is not finite, or the first rows of `matrix` are clearly asymmetric.

    >>> import numpy as np
    >>> greedy_order(np.array([0.0, -0.5, 0.0]), np.diag([2.0, 4.0, 6.0])).rises
    array([1. , 2.5, 5.5])
    """
    slope = np.asarray(slope, np.float64)
    columns, diagonal = _check(slope, matrix, factor)
    size = slope.size if matrix is not None else check_count("block_size", block_size)
    return _remove_all(slope, columns, diagonal, min(size, max(slope.size, 1)))


def _check(slope: np.ndarray, matrix: Any, factor: Any) -> tuple[Columns, np.ndarray]:
    if (matrix is None) == (factor is None):
        raise ValueError("one of matrix and factor must be given, got both or neither")
    name, given = ("matrix", matrix) if factor is None else ("factor", factor)
    given = np.asarray(given)
    n = slope.size
    if slope.ndim != 1 or given.ndim != 2 or given.shape[1] != n:
        raise ValueError(
            f"{name} must have as many columns as slope has entries, got shapes {given.shape} "
            f"and {slope.shape}"
        )
    if matrix is not None and given.shape[0] != n:
        raise ValueError(f"matrix must be square, got shape {given.shape}")
    diagonal = np.diagonal(given) if factor is None else np.einsum("mn,mn->n", given, given)
    if not np.isfinite(slope).all() or not np.isfinite(diagonal).all():
        raise ValueError(f"slope and {name} must be finite, got NaN or infinity")
    if factor is None:
        apart = np.abs(given[:LOOKED_AT] - given[:, :LOOKED_AT].T).max(initial=0)
        if apart > 1e-4 * np.abs(diagonal).max(initial=0):
            raise ValueError(f"matrix must be symmetric, got entries that differ by {apart:.3g}")
        return (lambda block: given if block.size == n else given[block]), diagonal
    return (lambda block: given[:, block].T @ given), diagonal


def _remove_all(
    slope: np.ndarray, columns: Columns, diagonal: np.ndarray, block_size: int
) -> Removal:
    n, score = slope.size, slope + np.asarray(diagonal, np.float64) / 2
    order, rises = np.empty(n, np.int32), np.empty(n)
    place, done, formed, rise = np.full(n, -1), 0, 0, 0.0
    while done < n:
        # Those removed have an infinite score, so they are never among the lowest.
        size = min(block_size, n - done)
        block = np.argpartition(score, size - 1)[:size] if size < n else np.arange(n)
        table, place[block] = columns(block), np.arange(size)
        formed += size
        while done < n:
            i = int(score.argmin())
            if place[i] < 0:
                break
            rise += score[i]
            score += table[place[i]]
            score[i] = np.inf
            order[i], rises[done] = n - 1 - done, rise
            done += 1
        place[block] = -1
    return Removal(order, rises, formed)


def gram(pieces: Any, dim: int, dtype: Any = np.float32) -> Float[np.ndarray, "n n"]:
    """Sum BᵀB over pieces of B, in place.

    Costs half the flops of a product, since only the lower triangle is computed, by blocks of
    columns, and then copied. Memory of one matrix, one piece and a few columns.

    Args:
        pieces: the pieces of B, each [m, n].
        dim: n.
        dtype: type of the sum.

    Returns:
        BᵀB [n, n].

    >>> import numpy as np
    >>> gram([np.array([[1.0, 2.0]]), np.array([[0.0, 1.0]])], 2, np.float64)
    array([[1., 2.],
           [2., 5.]])
    """
    # Not by BLAS's symmetric update: OpenBLAS's, with 32-bit sizes, crashes near n = 46,000.
    total = np.zeros((dim, dim), dtype)
    starts = range(0, dim, _BLOCK)
    for piece in pieces:
        rows = np.asarray(piece, dtype)
        for start in starts:
            total[start:, start : start + _BLOCK] += (
                rows[:, start:].T @ rows[:, start : start + _BLOCK]
            )
    for start in starts:
        stop = start + _BLOCK
        corner = total[start:stop, start:stop]
        total[start:stop, start:stop] = np.tril(corner) + np.tril(corner, -1).T
        total[start:stop, stop:] = total[stop:, start:stop].T
    return total
