"""Where the demand of a bound meets the ratio kept: found exactly in k, differentiated implicitly.

A `Criterion` says by how much too little is kept at a ratio ρ and a squared radius S = R²; with
S = S(ρ) of the network's own weights its excess falls with ρ, and the limit is where it vanishes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlimit._core import magnitudes
from jaxlimit._core.estimate import Estimate
from jaxlimit.limits.bounds import curvature_size, ridge_of_square
from jaxlimit.spectrum import SpectralMeasure, trace_bracket

# The readings of an estimate that a prediction is made of, each with a crossing of its own.
READINGS = ("value", "lower", "upper")


class Criterion(NamedTuple):
    """When a ratio keeps too few weights: where (1/D) tr H(aH + bcI)⁻¹ exceeds a target.

    offset None             a = 1, b = 1,     target ρ: ρ_L(R) > ρ, as published
    offset "perpendicular"  a = ρ, b = 1 - ρ, target 1: the ridge γ = c(1-ρ)/ρ
    offset "random"         a = ρ, b = 1,     target 1: the ridge γ = c/ρ

    The latter two are (1/D) tr H(H + γI)⁻¹ > ρ divided by ρ: else both sides would vanish at ρ = 0,
    where the question is whether a random point at distance R is inside, mean λ ≤ c. Hashable, so
    that it is static under `jit`.
    """

    negative: str
    offset: str | None = None

    def excess(self, measure: SpectralMeasure, square: Any, epsilon: Any, ratio: Any) -> Estimate:
        """By how much the demand exceeds what the ratio offers; too few are kept if positive."""
        c = ridge_of_square(square, epsilon)
        share, target = (1.0, ratio) if self.offset is None else (ratio, 1.0)
        if self.offset == "perpendicular":
            all_flat = jnp.isinf(c)
            c = jnp.where(all_flat, c, jnp.where(all_flat, 0, c) * (1 - ratio))

        def demand(eigenvalues):
            size = curvature_size(eigenvalues, self.negative)
            # At most 2D, so that no ridge and no ratio divide by 0; one eigenvalue of D that
            # asks for so much is too much by itself.
            whole = jnp.maximum(share * size + c, size / (2 * measure.dim))
            return jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, whole))

        estimate = trace_bracket(measure, demand)
        shifted = {name: getattr(estimate, name) - target for name in READINGS}
        return estimate._replace(**shifted)


class Crossing(NamedTuple):
    """Where the excess vanishes, for one reading of it or for several.

    Attributes:
        ratio: k/D.
        num_kept: k, the fewest weights whose excess is not positive.
        square: R², the squares of what is removed.
        threshold: magnitude of the smallest weight kept.
    """

    ratio: Float[Array, "..."]
    num_kept: Int[Array, "..."]
    square: Float[Array, "..."]
    threshold: Float[Array, "..."]


class Slopes(NamedTuple):
    """Derivatives of ρ at a crossing, by a shift of the excess itself, by ε and by R²."""

    excess: Float[Array, ""]
    epsilon: Float[Array, ""]
    square: Float[Array, ""]


def find(
    criterion: Criterion, measure: SpectralMeasure, weights: Float[Array, "D"], epsilon: Any
) -> Crossing:
    """Find the crossings of all `READINGS` in the same passes over the weights."""
    bits = magnitudes.magnitude_bits(weights)
    dim = weights.size

    def keeps_too_few(num_kept, radius):
        at = jax.vmap(criterion.excess, (None, 0, None, 0))
        excess = at(measure, radius**2, epsilon, num_kept / dim)
        return jnp.stack([getattr(excess, name)[i] for i, name in enumerate(READINGS)]) > 0

    split, num_kept = magnitudes.find_split(bits, keeps_too_few, (len(READINGS),))
    return Crossing(num_kept / dim, num_kept, split.radius(num_kept) ** 2, split.magnitude)


def slopes(criterion: Criterion, measure: SpectralMeasure, at: Crossing, epsilon: Any) -> Slopes:
    """Differentiate the crossing of the value by the implicit function theorem.

    E(S, ε, ρ) = 0 with dS/dρ = -D t² (the next weight to go has magnitude t) gives
    dρ = (dE + E_ε dε + E_S dS)/(D t² E_S - E_ρ), dE and dS shifts of the excess and of S(ρ).
    """

    def excess(square, epsilon, ratio):
        return criterion.excess(measure, square, epsilon, ratio).value

    by_square, by_epsilon, by_ratio = jax.grad(excess, (0, 1, 2))(
        at.square, jnp.asarray(epsilon, at.square.dtype), at.ratio
    )
    fall = measure.dim * at.threshold**2 * by_square - by_ratio
    # No fall where R = 0, and too steep a one at eigenvalues whose square underflows: the excess
    # jumps past 0, at a ratio that nothing moves.
    moves = (fall > 0) & jnp.isfinite(fall)
    rates = jnp.stack([jnp.ones_like(fall), by_epsilon, by_square])
    return Slopes(*jnp.where(moves, rates / jnp.where(moves, fall, 1), 0))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def differentiable(
    criterion: Criterion,
    at: Crossing,
    measure: SpectralMeasure,
    weights: Float[Array, "D"],
    epsilon: Any,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return ratio and radius of the value's crossing as functions of what they solve for."""
    del criterion, measure, weights, epsilon
    return at.ratio, jnp.sqrt(at.square)


@differentiable.defjvp
def _differentiable_jvp(criterion, primals, tangents):
    at, measure, weights, epsilon = primals
    _, by_measure, by_weights, by_epsilon = tangents
    rates = slopes(criterion, measure, at, epsilon)
    excess = lambda m: criterion.excess(m, at.square, epsilon, at.ratio).value  # noqa: E731
    shift = jax.jvp(excess, (measure,), (by_measure,))[1]
    removed = jnp.where(jnp.abs(weights) < at.threshold, weights, 0).astype(at.square.dtype)
    square = 2 * jnp.vdot(removed, by_weights)
    ratio = rates.excess * shift + rates.epsilon * by_epsilon + rates.square * square
    along = square - weights.size * at.threshold**2 * ratio
    radius = jnp.where(at.square > 0, jnp.sqrt(at.square), jnp.inf)
    values, changes = differentiable(criterion, *primals), (ratio, along / (2 * radius))
    return values, tuple(dx.astype(x.dtype) for x, dx in zip(values, changes, strict=True))
