"""Prune a little, refit, order again: how few weights such rounds keep on the quadratic."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core.checks import check_range
from jaxlimit._core.estimate import value_of
from jaxlimit.limits.refitting import refit


class RefittedRounds(NamedTuple):
    """The end of rounds of pruning and refitting on the quadratic.

    Attributes:
        ratio: k/D.
        num_kept: k.
        rise: the quadratic's rise over w* at the end, at most ε.
        weights: the refitted weights, zero where removed.
        kept: True where a weight is kept.
        history: k after each round.
        num_products: products made in all.
    """

    ratio: float
    num_kept: int
    rise: float
    weights: Float[Array, "D"]
    kept: Bool[Array, "D"]
    history: tuple[int, ...]
    num_products: int


def refitted_rounds(
    matvec: Any,
    gradient: Float[Array, "D"],
    weights: Float[Array, "D"],
    epsilon: Any,
    *,
    diagonal: Float[Array, "D"] | None = None,
    shrink: float = 0.5,
    damping: float = 0.0,
    num_steps: int = 30,
    relative: float = 1e-2,
) -> RefittedRounds:
    """Remove weights, refit the rest on the quadratic, order them again, and repeat.

    A round keeps a share `shrink` of what is left. If the refitted rise is then above ε, the round
    is undone and √shrink tried instead, until a round would remove less than `relative` of what is
    left. The order is that of the saliency -vᵢ∇ᵢ + ½ vᵢ²Hᵢᵢ at the refitted weights v, ∇ the
    quadratic's gradient there, or that of |v| without a diagonal. `refitted_limit` keeps the order
    of w* throughout; the difference is the gain of ordering again. Costs num_steps + 4 products a
    round, and about log(D/k) / log(1/shrink) + 6 rounds.

    Args:
        matvec: see `refit`.
        gradient: g at w*.
        weights: w*; zeros count as removed.
        epsilon: ε ≥ 0, a number or an `Estimate`, whose value is used.
        diagonal: that of H; None orders by magnitude.
        shrink: share of the weights that a round keeps, in (0, 1]; 1 removes them one by one.
        damping: μ of the refits.
        num_steps: conjugate gradient steps a round, at most.
        relative: width of the last bracket of k, over k.

    Returns:
        The `RefittedRounds`.

    Raises:
        TypeError: as `refit`.
        ValueError: as `refit`, or if ε is negative or not finite, or `shrink` or `relative` is out
            of range.

    >>> import jax.numpy as jnp
    >>> H = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    >>> w = jnp.array([1.0, 1.0, 0.5])  # the first two can stand for each other
    >>> refitted_rounds(lambda v: H @ v, jnp.zeros(3), w, 0.2, diagonal=jnp.ones(3)).weights
    Array([2., 0., 0.], dtype=float32)

    Hassibi, Stork (1993), with many weights a step.
    """
    epsilon = float(value_of(epsilon))
    check_range("epsilon", epsilon, 0, float(np.finfo(np.float32).max))
    check_range("shrink", shrink, 0, 1, open_low=True)
    check_range("relative", relative, 0, open_low=True)
    kept = jnp.asarray(weights) != 0
    now, rise, products = jnp.asarray(weights), 0.0, 0
    history = [int(kept.sum())]
    while (count := history[-1]) > 0:
        step = max(1, round(count * (1 - shrink)))
        slope = gradient + matvec(now - weights)
        smaller = _places(kept, now, slope, diagonal) < count - step
        found = refit(matvec, gradient, weights, smaller, start=now, damping=damping,
                      num_steps=num_steps)  # fmt: skip
        products += int(found.num_products) + 1
        if float(found.rise) <= epsilon:
            kept, now, rise = smaller, found.weights, float(found.rise)
            history.append(count - step)
        elif step <= max(1, relative * count):
            break
        else:
            shrink = shrink**0.5
    return RefittedRounds(count / now.size, count, rise, now, kept, tuple(history), products)


@jax.jit
def _places(
    kept: Bool[Array, "D"], weights: Array, slope: Array, diagonal: Array | None
) -> Int[Array, "D"]:
    """Order what is kept by the cost of its removal, highest first, and the rest behind."""
    cost = jnp.abs(weights)
    if diagonal is not None:
        cost = weights * (weights * diagonal / 2 - slope)
    order = jnp.argsort(jnp.where(kept, cost, -jnp.inf), descending=True, stable=True)
    places = jnp.arange(weights.size, dtype=jnp.int32)
    return jnp.zeros_like(places).at[order].set(places, unique_indices=True)
