"""The exact limits of a quadratic loss, which the bounds and the threshold predict."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlimit._core import scale
from jaxlimit._core.checks import check_range, check_real, is_concrete, is_finite
from jaxlimit._core.estimate import value_of
from jaxlimit._core.summaries import short_repr
from jaxlimit.limits.bounds import relative_ridge


class QuadraticLimit(NamedTuple):
    """The fewest weights that magnitude pruning may keep on a quadratic loss.

    Attributes:
        refitted: with the kept weights refitted, where the coordinate plane of the kept weights
            starts to meet the sublevel set.
        one_shot: with the kept weights as they are, as a sweep measures it; this and every larger
            count is within ε.
    """

    refitted: Int[Array, "..."]
    one_shot: Int[Array, "..."]

    __repr__ = short_repr


def quadratic_limit(
    hessian: Float[Array, "D D"], weights: Float[Array, "D"], epsilon: Any
) -> QuadraticLimit:
    """Find the pruning limit of the loss ½(w - w*)ᵀH(w - w*) exactly, by linear algebra.

    With the weights in falling order of magnitude, H = LLᵀ and zᵀ = w*ᵀL, the least rise of the
    loss over all w whose nonzero weights are among the first k is ½ Σ_{i > k} z_i². So one Cholesky
    factorisation, O(D³), serves every k and every ε. To a singular H a ridge of D eps ‖H‖ is added,
    which raises a loss by at most half of that times the least ‖w - w*‖² of a refit.

    Args:
        hessian: H, symmetric positive semi-definite.
        weights: w*.
        epsilon: ε ≥ 0, any shape.

    Returns:
        A `QuadraticLimit`, counts in [0, D] of the shape of `epsilon`. Where H has negative
        eigenvalues there is no least rise, and `refitted` is `one_shot`.

    Raises:
        TypeError: if an argument is no real array.
        ValueError: if the shapes do not match, H or a weight is not finite, H is asymmetric by more
            than rounding, or ε is negative or NaN.

    >>> import jax.numpy as jnp
    >>> hessian = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> quadratic_limit(hessian, jnp.array([3.0, 1.0]), 0.8)  # without the last 1 at least ¾
    QuadraticLimit(refitted=1, one_shot=2)
    """
    for name, array in (("hessian", hessian), ("weights", weights)):
        check_real(name, array)
        if not is_finite(array):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    hessian, weights = (jnp.asarray(x, jnp.result_type(float, x)) for x in (hessian, weights))
    if weights.ndim != 1 or hessian.shape != (weights.size, weights.size):
        raise ValueError(
            f"hessian must be [D, D] and weights [D], got {hessian.shape} and {weights.shape}"
        )
    _check_symmetric(hessian)
    epsilon = value_of(epsilon)
    check_range("epsilon", epsilon, 0)
    return _quadratic_limit(hessian, weights, jnp.asarray(epsilon, jnp.result_type(float)))


def _check_symmetric(hessian: Float[Array, "D D"]) -> None:
    """Raise where a known matrix is asymmetric by more than the rounding of its type."""
    if not is_concrete(hessian):
        return
    matrix = np.asarray(hessian, np.float64)
    gap, size = np.abs(matrix - matrix.T).max(initial=0), np.abs(matrix).max(initial=0)
    # A product of two rounds each entry by √D eps; 1e3 leaves room for sums over a data set.
    if gap > 1e3 * len(matrix) ** 0.5 * float(jnp.finfo(hessian.dtype).eps) * size:
        raise ValueError(
            f"hessian must be symmetric, got entries up to {size:.3g} that differ from those of "
            f"its transpose by up to {gap:.3g}"
        )


@jax.jit
def _quadratic_limit(hessian: Array, weights: Array, epsilon: Array) -> QuadraticLimit:
    wide = scale.wide_type(jnp.result_type(hessian, weights))
    units = [scale.magnitude(x).reshape(()) for x in (hessian, weights)]
    hessian, weights = (
        x.astype(wide) / unit for x, unit in zip((hessian, weights), units, strict=True)
    )
    # ½R²c at R = 1 of these units: ε over the units of H and w².
    epsilon = relative_ridge(units[1], epsilon.astype(wide), units[0]) / 2
    order = jnp.argsort(jnp.abs(weights), descending=True, stable=True)
    w, H = weights[order], hessian[order[:, None], order]
    ridge = w.size * jnp.finfo(H.dtype).eps * jnp.linalg.norm(H) * jnp.eye(w.size, dtype=H.dtype)
    L = jnp.linalg.cholesky(H)
    L = jax.lax.cond(jnp.isfinite(L).all(), lambda: L, lambda: jnp.linalg.cholesky(H + ridge))
    refitted = _fewest((L.T @ w) ** 2, epsilon)
    # Each weight removed brings its own curvature and its ties to those removed before it.
    one_shot = w * (jnp.diag(H) * w + 2 * jnp.triu(H, 1) @ w)
    one_shot = _fewest(one_shot, epsilon)
    return QuadraticLimit(jnp.minimum(refitted, one_shot), one_shot)


def _fewest(shares: Array, epsilon: Array) -> Int[Array, "..."]:
    """Count the weights up to the last one after which the rest exceeds ε; NaN exceeds it."""
    rises = jnp.cumsum(shares[::-1])[::-1] / 2
    too_much = ~(rises <= epsilon[..., None])
    return jnp.max(jnp.where(too_much, jnp.arange(1, shares.size + 1), 0), -1)
