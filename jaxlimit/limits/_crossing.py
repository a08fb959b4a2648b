"""Where the demand of a bound meets the ratio kept: found exactly in k, differentiated implicitly.

The excess of a `Criterion` is what a bound demands beyond the ratio ρ kept, at a ridge c = 2ε/R².
With R = R(ρ) of the network's own weights it falls with ρ, and the limit is where it vanishes.
Everything is computed from c over a power of two near the largest eigenvalue, which does not change
when H and ε, or the weights, are scaled.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import magnitudes
from jaxlimit._core.estimate import Estimate
from jaxlimit.limits.bounds import eigenvalue_unit, relative_ridge
from jaxlimit.spectrum import SpectralMeasure, trace_bracket

# A prediction combines these readings of an estimate, each with a crossing of its own.
READINGS = ("value", "lower", "upper")


class Criterion(NamedTuple):
    """The condition that a ratio keeps too few weights: (1/D) tr H(aH + bcI)⁻¹ exceeds a target.

    offset None             a = 1, b = 1,     target ρ: ρ_L(R) > ρ, as published
    offset "perpendicular"  a = ρ, b = 1 - ρ, target 1: the ridge γ = c(1-ρ)/ρ
    offset "random"         a = ρ, b = 1,     target 1: the ridge γ = c/ρ

    The latter two are (1/D) tr H(H + γI)⁻¹ > ρ divided by ρ. Without the division both sides would
    vanish at ρ = 0, where the question is whether a random point at distance R is inside, that is
    mean λ ≤ c. The fields are arrays: one compiled program serves all three.

    Attributes:
        clips: whether max(λ, 0) is what counts, |λ| otherwise.
        is_random: whether there is an offset.
        is_perpendicular: whether it is perpendicular.
    """

    clips: Bool[Array, ""]
    is_random: Bool[Array, ""]
    is_perpendicular: Bool[Array, ""]

    @classmethod
    def of(cls, negative: str, offset: str | None = None) -> "Criterion":
        """Make a criterion from the names of the public arguments."""
        flags = negative == "clip", offset is not None, offset == "perpendicular"
        return cls(*map(jnp.asarray, flags))

    def excess(self, measure: SpectralMeasure, ridge: Any, ratio: Any) -> Estimate:
        """Return by how much the demand exceeds the ratio; too few weights are kept if positive.

        Args:
            measure: spectrum of H.
            ridge: c over `eigenvalue_unit(measure)`.
            ratio: ρ.
        """
        share = jnp.where(self.is_random, ratio, 1.0)
        target = jnp.where(self.is_random, 1.0, ratio)
        all_flat = jnp.isinf(ridge)
        narrowed = jnp.where(all_flat, ridge, jnp.where(all_flat, 0, ridge) * (1 - ratio))
        ridge = jnp.where(self.is_perpendicular, narrowed, ridge)
        unit = eigenvalue_unit(measure)

        def demand(eigenvalues):
            scaled = eigenvalues / unit
            size = jnp.where(self.clips, jnp.maximum(scaled, 0), jnp.abs(scaled))
            # At most 2D: no ridge and no ratio divide by 0, and one eigenvalue of D that
            # asks for so much is too much by itself.
            whole = jnp.maximum(share * size + ridge, size / (2 * measure.dim))
            return jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, whole))

        estimate = trace_bracket(measure, demand)
        shifted = {name: getattr(estimate, name) - target for name in READINGS}
        return estimate._replace(**shifted)


class Crossing(NamedTuple):
    """Where the excess vanishes, for one or several readings of an estimate.

    Attributes:
        ratio: k/D.
        num_kept: k, the fewest weights whose excess is not positive.
        radius: R, the norm of what is removed.
        threshold: t, magnitude of the smallest weight kept.
    """

    ratio: Float[Array, "..."]
    num_kept: Int[Array, "..."]
    radius: Float[Array, "..."]
    threshold: Float[Array, "..."]

    def fall(self, dim: int) -> Float[Array, "..."]:
        """Return -d log R/dρ = ½D (t/R)²: the next weight to go has magnitude t. ∞ where R = 0."""
        none = self.radius == 0
        steps = jnp.where(none, jnp.inf, self.threshold / jnp.where(none, 1, self.radius))
        return dim / 2 * steps**2


class Slopes(NamedTuple):
    """Derivatives of ρ at a crossing, by a shift of the excess itself, by ε and by log R."""

    excess: Float[Array, ""]
    epsilon: Float[Array, ""]
    log_radius: Float[Array, ""]

    def of_epsilon(self, epsilon: Any, error: Any) -> Float[Array, ""]:
        """Return |dρ| for a change of ε by `error`, where dρ/dε itself may overflow."""
        none = epsilon == 0
        relative = self.log_radius / 2 * (error / jnp.where(none, 1, epsilon))
        from_none = jnp.where(error == 0, 0, self.epsilon) * error
        return jnp.abs(jnp.where(none, from_none, relative))


def find(
    criterion: Criterion, measure: SpectralMeasure, weights: Float[Array, "D"], epsilon: Any
) -> Crossing:
    """Find the crossings of all `READINGS` in the same passes over the weights."""
    bits = magnitudes.magnitude_bits(weights)
    dim, unit = weights.size, eigenvalue_unit(measure)

    def keeps_too_few(num_kept, radius):
        at = jax.vmap(criterion.excess, (None, 0, 0))
        excess = at(measure, relative_ridge(radius, epsilon, unit), num_kept / dim)
        return jnp.stack([getattr(excess, name)[i] for i, name in enumerate(READINGS)]) > 0

    split, num_kept = magnitudes.find_split(bits, keeps_too_few, (len(READINGS),))
    return Crossing(num_kept / dim, num_kept, split.radius(num_kept), split.magnitude)


def slopes(criterion: Criterion, measure: SpectralMeasure, at: Crossing, epsilon: Any) -> Slopes:
    """Differentiate the crossing of the value by the implicit function theorem.

    E(c, ρ) = 0 with d log c = d log ε - 2 d log R and R = R(ρ) gives, with E' = c E_c,
    dρ = (dE + E' d log ε - 2 E' d log R)/(-E_ρ + 2 E' d log R/dρ), dE and d log R shifts of the
    excess and of the curve R(ρ).
    """
    unit = eigenvalue_unit(measure)
    ridge = relative_ridge(at.radius, epsilon, unit)
    excess = lambda ridge, ratio: criterion.excess(measure, ridge, ratio).value  # noqa: E731
    by_ridge, by_ratio = jax.grad(excess, (0, 1))(ridge, at.ratio)
    by_log = jnp.where(jnp.isinf(ridge), 0, ridge * by_ridge)
    fall = -by_ratio - 2 * by_log * at.fall(measure.dim)
    # No fall where R = 0, and too steep a one where the next weight to go is very much larger
    # than all that went: the excess jumps past 0, at a ratio that nothing moves.
    moves = (fall > 0) & jnp.isfinite(fall)
    none = epsilon == 0
    # A radius too small to be squared makes the ridge of any ε infinite, and 0·∞ no slope.
    at_none = jnp.where(by_ridge == 0, 0, by_ridge * relative_ridge(at.radius, 1.0, unit))
    by_epsilon = jnp.where(none, at_none, by_log / jnp.where(none, 1, epsilon))
    rates = jnp.stack([jnp.ones_like(fall), by_epsilon, -2 * by_log])
    return Slopes(*jnp.where(moves, rates / jnp.where(moves, fall, 1), 0))


@jax.custom_jvp
def differentiable(
    criterion: Criterion,
    at: Crossing,
    measure: SpectralMeasure,
    weights: Float[Array, "D"],
    epsilon: Any,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return ratio and radius of the value's crossing, differentiable in all arguments."""
    del criterion, measure, weights, epsilon
    return at.ratio, at.radius


@differentiable.defjvp
def _differentiable_jvp(primals, tangents):
    criterion, at, measure, weights, epsilon = primals
    _, _, by_measure, by_weights, by_epsilon = tangents
    rates = slopes(criterion, measure, at, epsilon)
    ridge = relative_ridge(at.radius, epsilon, eigenvalue_unit(measure))
    excess = lambda m: criterion.excess(m, ridge, at.ratio).value  # noqa: E731
    shift = jax.jvp(excess, (measure,), (by_measure,))[1]
    radius = jnp.where(at.radius > 0, at.radius, jnp.inf)
    removed = jnp.where(jnp.abs(weights) < at.threshold, weights, 0).astype(radius.dtype) / radius
    log_radius = jnp.vdot(removed, by_weights.astype(radius.dtype) / radius)
    ratio = rates.excess * shift + rates.epsilon * by_epsilon + rates.log_radius * log_radius
    # Where R = 0 nothing moves, and the fall is infinite.
    along = jnp.where(at.radius > 0, at.fall(weights.size) * ratio, 0)
    values, changes = differentiable(*primals), (ratio, at.radius * (log_radius - along))
    return values, tuple(dx.astype(x.dtype) for x, dx in zip(values, changes, strict=True))
