"""How close a network is to an l1 minimum, and what a mask keeps of each leaf."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_range
from jaxlimit._core.weights import Where, check_kept, flat_vectors, is_weight, selected


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


def kept_by_layer(mask: Any, *, where: Where = is_weight) -> dict[str, tuple[int, int]]:
    """Count what a mask keeps of each leaf under study, and how many weights it has.

    Args:
        mask: pytree of Booleans like the parameters, True = kept.
        where: which leaves are under study.

    Returns:
        The counts (kept, all) by the path of the leaf.

    Raises:
        ValueError: if an entry is neither Boolean nor 0 or 1.

    >>> import jax.numpy as jnp
    >>> kept_by_layer({"Dense_0": {"kernel": jnp.array([True, False])}})
    {'Dense_0/kernel': (1, 2)}
    """
    paths = jax.tree_util.tree_leaves_with_path(mask)
    for path, leaf in paths:
        if not np.isin(np.asarray(leaf), (0, 1)).all():
            where_it_is = jax.tree_util.keystr(path)
            raise ValueError(f"mask{where_it_is} must hold Booleans, or 0 and 1, got other numbers")
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            int(np.asarray(leaf).sum()),
            int(np.size(leaf)),
        )
        for (path, leaf), studied in zip(paths, selected(mask, where), strict=True)
        if studied
    }
