"""Orders of removal: by saliency, and by any other score."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core.checks import check_floating_tree
from jaxlimit._core.weights import check_kept, flat_vectors


def saliency(
    weights: Float[Array, "D"],
    gradient: Float[Array, "D"],
    diagonal: Float[Array, "D"],
    *,
    signed: bool = True,
) -> Float[Array, "D"]:
    """Forecast the rise of the loss when one weight alone is removed, to second order.

    sᵢ = -wᵢgᵢ + ½ wᵢ²Gᵢᵢ; or, unsigned, |wᵢgᵢ| + ½ wᵢ²|Gᵢᵢ|, since away from a minimum the gains of
    many removals do not add up. Works under `jit` and `vmap`.

    Args:
        weights: w [D].
        gradient: g [D], of the data loss.
        diagonal: of the Gauss-Newton matrix or the Hessian [D].
        signed: whether terms that lower the loss count as gains.

    Returns:
        s [D], in units of the loss.

    Raises:
        TypeError: if an argument is no real array.
        ValueError: if the shapes differ, or something is not finite.

    >>> import jax.numpy as jnp
    >>> saliency(jnp.array([1.0, -2.0]), jnp.array([0.5, 0.5]), jnp.array([2.0, 2.0]))
    Array([0.5, 5. ], dtype=float32)

    LeCun, Denker, Solla (1990), with the gradient kept.
    """
    gradient, diagonal, weights = flat_vectors(
        gradient=gradient, diagonal=diagonal, weights=weights
    )
    linear, square = -weights * gradient, weights * (weights * diagonal) / 2
    return linear + square if signed else jnp.abs(linear) + jnp.abs(square)


def order_by(scores: Float[Array, "D"], live: Bool[Array, "D"] | None = None) -> Int[Array, "D"]:
    """Order weights by a score, the greatest kept longest; among equals the lower index wins.

    Costs one sort.

    Args:
        scores: the worth of each weight [D].
        live: True where a weight is not dead [D]; the others are removed first.

    Returns:
        The place of each weight [D], int32: a mask of k weights keeps the places below k.

    Raises:
        ValueError: if a score is NaN or infinite.

    >>> import jax.numpy as jnp
    >>> order_by(jnp.array([0.1, 3.0, 2.0, 2.0]))
    Array([3, 0, 1, 2], dtype=int32)
    """
    check_floating_tree("scores", scores)
    if live is not None:
        live = check_kept("live", live, jnp.size(scores))
    return _places(scores if live is None else jnp.where(live, scores, -jnp.inf))


@jax.jit
def _places(scores: Float[Array, "D"]) -> Int[Array, "D"]:
    order = jnp.argsort(scores, descending=True, stable=True)
    places = jnp.arange(scores.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places, unique_indices=True)


def order_by_relaxed(relaxed: Float[Array, "D"], gradient: Any) -> Int[Array, "D"]:
    """Round a relaxed mask to an order of removal, largest z̄ first.

    Weights with equal z̄, such as the many at 0 and at 1, are ordered by ∂q/∂zᵢ, the smallest first.
    Costs one sort.

    Args:
        relaxed: z̄ in [0, 1] [D], 1 = removed, as `limits.certificate` returns it.
        gradient: ∇q(z̄) [D].

    Returns:
        Places [D], as `order_by`.

    >>> import jax.numpy as jnp
    >>> order_by_relaxed(jnp.array([1.0, 0.0, 0.0]), jnp.array([0.0, 2.0, 3.0]))
    Array([2, 1, 0], dtype=int32)
    """
    gradient, relaxed = flat_vectors(gradient=gradient, relaxed=relaxed)
    return _places_of_relaxed(relaxed, gradient)


@jax.jit
def _places_of_relaxed(relaxed: Array, gradient: Array) -> Int[Array, "D"]:
    order = jnp.lexsort((-gradient, relaxed))
    places = jnp.arange(relaxed.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places, unique_indices=True)
