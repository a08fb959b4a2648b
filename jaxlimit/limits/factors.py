"""What the limit depends on: sensitivities, weight magnitude and flatness."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlimit._core import scale
from jaxlimit._core.checks import check_choice, check_type, is_concrete
from jaxlimit._core.summaries import short_repr
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.limits import _crossing
from jaxlimit.limits._crossing import Criterion, Crossing
from jaxlimit.limits.bounds import (
    NEGATIVE,
    check_measure,
    curvature_size,
    eigenvalue_unit,
    trace_bound,
)
from jaxlimit.limits.prediction import OFFSETS, PruningLimit, pruning_limit
from jaxlimit.limits.tolerance import split_epsilon
from jaxlimit.spectrum import SpectralMeasure, trace_bracket


class Sensitivity(NamedTuple):
    """How a predicted limit changes with what it was predicted from.

    Attributes:
        epsilon: dρ*/dε.
        radius: dρ*/dR, for a shift of the whole curve R(ρ).
        scale: dρ*/d log s, all weights (hence the curve R(ρ)) scaled by s. The derivative by the
            logarithm of H is half of it, and that by the logarithm of ε is minus half of it.
    """

    epsilon: Float[Array, ""]
    radius: Float[Array, ""]
    scale: Float[Array, ""]

    __repr__ = short_repr


class KeyFactors(NamedTuple):
    """The two quantities that decide how far a network can be pruned.

    Attributes:
        radius: R(ρ*), norm of what is removed.
        norm: ‖w*‖.
        removed: R²/‖w*‖², share of the squared norm that is removed.
        trace: tr|H| (tr max(H, 0) for "clip"): the smaller, the flatter.
        rise: ½R² tr|H|/D, the mean rise of the quadratic loss at distance R in a random
            direction: the product of weight magnitude and curvature.
        bound: rise/(rise + ε), the trace bound of ρ*.
        elasticity: d log ρ*/d log s, all weights scaled by s; half of it for the curvature scaled.
            0 where ρ* is 0.
    """

    radius: Float[Array, ""]
    norm: Float[Array, ""]
    removed: Float[Array, ""]
    trace: Float[Array, ""]
    rise: Float[Array, ""]
    bound: Float[Array, ""]
    elasticity: Float[Array, ""]

    __repr__ = short_repr


def sensitivity(
    measure: SpectralMeasure,
    limit: PruningLimit,
    epsilon: Any,
    *,
    negative: str = "abs",
    offset: str | None = None,
) -> Sensitivity:
    """Differentiate a predicted limit by the implicit function theorem.

    The published limit solves ρ = g(R(ρ), ε) with R' = -D t²/(2R), t the magnitude of the next
    weight to go. So dρ*/dε = g_ε/n, dρ*/dR = g_R/n and dρ*/d log s = R g_R/n with
    n = 1 + g_R D t²/(2R). Costs a few evaluations of the trace, no pass over the weights.

    Args:
        measure: spectrum of H that the limit was predicted from.
        limit: from `pruning_limit`, or from `random_subspace_threshold` if `offset` is given.
        epsilon: ε that it was predicted with.
        negative: "abs" or "clip", as it was predicted.
        offset: None for the published limit, else "perpendicular" or "random".

    Returns:
        A `Sensitivity`, zeros where R = 0, NaN where the limit is.

    Raises:
        TypeError: as `pruning_limit`.
        ValueError: as `pruning_limit`.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> measure, weights = exact_measure(jnp.full(1000, 2.0)), jnp.linspace(0, 1, 1000)
    >>> limit = pruning_limit(measure, weights, 1.0)
    >>> sensitivity(measure, limit, 1.0).epsilon
    Array(-0.05116, dtype=float32)
    """
    check_choice("negative", negative, NEGATIVE)
    if offset is not None:
        check_choice("offset", offset, OFFSETS)
    check_measure("measure", measure)
    if not isinstance(limit, PruningLimit):
        raise TypeError(f"limit must be a PruningLimit, got {type(limit).__name__}")
    value, _ = split_epsilon(epsilon)
    return _sensitivity(Criterion.of(negative, offset), measure, limit, value)


@jax.jit
def _sensitivity(criterion, measure, limit, epsilon) -> Sensitivity:
    at = Crossing(limit.ratio, limit.num_kept, limit.radius, limit.threshold)
    rates = _crossing.slopes(criterion, measure, at, epsilon)
    found = Sensitivity(rates.epsilon, _ratio(rates.log_radius, limit.radius), rates.log_radius)
    return jax.tree.map(lambda x: jnp.where(jnp.isnan(limit.ratio), jnp.nan, x), found)


def key_factors(
    measure: SpectralMeasure,
    weights: Any,
    epsilon: Any,
    *,
    limit: PruningLimit | None = None,
    negative: str = "abs",
    where: Where = is_weight,
) -> KeyFactors:
    """Measure weight magnitude and flatness at the predicted limit.

    ρ* ≤ r/(r + ε) with r = ½R² tr|H|/D. So networks with small weights (R) and a flat landscape
    (tr|H|) can be pruned far; only the product of both counts, relative to ε.

    Args:
        measure: spectrum of H over the same weights.
        weights: w*, a pytree or flat vector.
        epsilon: ε ≥ 0.
        limit: from `pruning_limit` with the same arguments; computed if not given.
        negative: "abs" or "clip".
        where: which leaves are weights under study.

    Returns:
        A `KeyFactors`; NaN where the limit is.

    Raises:
        TypeError: as `pruning_limit`.
        ValueError: as `pruning_limit`, or if `limit` removes more than these weights' norm.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> factors = key_factors(exact_measure(jnp.full(4, 2.0)), jnp.array([4.0, 1, 1, 1]), 1.0)
    >>> factors.rise, factors.trace
    (Array(1., dtype=float32), Array(8., dtype=float32))

    Zhang, Zhang, Sun, Liu (2024), section 4.
    """
    if limit is None:
        limit = pruning_limit(measure, weights, epsilon, negative=negative, where=where)
    check_type("limit", limit, PruningLimit)
    value, _ = split_epsilon(epsilon)
    norm = scale.norm(flatten_weights(weights, where, name="weights")[0])
    if is_concrete(limit.radius, norm) and float(limit.radius) > 1.01 * float(norm):
        raise ValueError(
            f"limit must be one of these weights, but its radius {float(limit.radius):.3g} "
            f"exceeds their norm {float(norm):.3g}"
        )
    unit = eigenvalue_unit(measure)
    size = lambda x: curvature_size(x / unit, negative)  # noqa: E731
    mean = unit * trace_bracket(measure, size).value
    trace = mean * measure.dim
    by_scale = sensitivity(measure, limit, value, negative=negative).scale
    return KeyFactors(
        radius=limit.radius,
        norm=norm,
        removed=_ratio(limit.radius, norm) ** 2,
        trace=trace,
        rise=limit.radius * mean / 2 * limit.radius,
        bound=trace_bound(mean, limit.radius, value, dim=1),
        elasticity=_ratio(by_scale, limit.ratio),
    )


def _ratio(numerator, denominator):
    return jnp.where(denominator == 0, 0, numerator / jnp.where(denominator == 0, 1, denominator))
