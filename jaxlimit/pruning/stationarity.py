"""How close a network is to an l1 minimum, and what a mask keeps of each leaf."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_range
from jaxlimit._core.weights import check_kept, flat_vectors


class L1Residual(NamedTuple):
    """The distance from a minimum under an l1 penalty: ||gᵢ|/l1 - 1| on the support.

    Attributes:
        maximum: the largest; 0 where the conditions of a minimum hold on the support.
        median: the median.
        ratio: the median of |gᵢ|/l1 on the support, 1 at a minimum.
        num_support: number of weights in the support.
    """

    maximum: Float[Array, ""]
    median: Float[Array, ""]
    ratio: Float[Array, ""]
    num_support: int


def l1_residual(
    gradient: Float[Array, "D"], weights: Float[Array, "D"], l1: Any, *, support: Any = None
) -> L1Residual:
    """Measure how well the weights that an l1 penalty keeps satisfy its conditions of optimality.

    At a minimum of L + l1·‖w‖₁ every wᵢ ≠ 0 has gᵢ = -l1·sign(wᵢ), so |gᵢ|/l1 = 1. To first order,
    removing weight i then raises the loss by l1·|wᵢ|: the first-order ranking is by magnitude.

    Args:
        gradient: g [D], of the data loss without the penalty.
        weights: w [D].
        l1: strength of the penalty, above 0.
        support: True at the weights to test [D], such as those not dead; None takes wᵢ ≠ 0.

    Returns:
        An `L1Residual`; NaN where the support is empty.

    Raises:
        TypeError: if a vector is no real array, or `support` not boolean.
        ValueError: if `l1` is not above 0, the shapes differ, or something is not finite.

    >>> import jax.numpy as jnp
    >>> l1_residual(jnp.array([-0.1, 0.05, 9.0]), jnp.array([1.0, -1.0, 0.0]), 0.1).maximum
    Array(0.5, dtype=float32)
    """
    check_range("l1", l1, 0, open_low=True)
    gradient, weights = flat_vectors(gradient=gradient, weights=weights)
    support = weights != 0 if support is None else check_kept("support", support, weights.size)
    ratios = jnp.where(support, jnp.abs(gradient) / l1, jnp.nan)
    residuals = jnp.abs(ratios - 1)
    return L1Residual(
        jnp.where(support.any(), jnp.nanmax(jnp.where(support, residuals, -1)), jnp.nan),
        jnp.nanmedian(residuals),
        jnp.nanmedian(ratios),
        int(support.sum()),
    )
