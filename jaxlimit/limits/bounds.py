"""The published bounds at a given radius: traces of λ/(λ + c)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core import scale
from jaxlimit._core.checks import (
    check_choice,
    check_count,
    check_range,
    check_real,
    is_concrete,
    is_finite,
)
from jaxlimit._core.estimate import Estimate, value_of
from jaxlimit.spectrum import SpectralMeasure, trace_bracket

NEGATIVE = ("abs", "clip")


def ridge(radius: Any, epsilon: Any) -> Float[Array, "..."]:
    """Return c = 2ε/R², the eigenvalue below which a direction counts as flat.

    ∞ at R = 0 and at ε = ∞, where nothing matters; else 0 at ε = 0 and at R = ∞.

    Args:
        radius: R ≥ 0, any shape.
        epsilon: ε ≥ 0, any shape that broadcasts with `radius`.

    Returns:
        c, of the broadcast shape.

    Raises:
        TypeError: if an argument is no real number or array.
        ValueError: if an argument is negative or NaN.

    >>> ridge(2.0, 0.5)
    Array(0.25, dtype=float32)
    """
    epsilon = value_of(epsilon)
    check_range("radius", radius, 0)
    check_range("epsilon", epsilon, 0)
    return relative_ridge(radius, epsilon, 1.0)


def relative_ridge(radius: Any, epsilon: Any, unit: Any) -> Float[Array, "..."]:
    """Return c/unit even where R² or c is not representable; its derivative is 0 where c is ∞."""
    dtype = jnp.result_type(float, radius, epsilon, unit)
    radius, epsilon, unit = (jnp.asarray(x, dtype) for x in (radius, epsilon, unit))
    all_flat = (radius == 0) | jnp.isinf(epsilon)
    safe = [jnp.where(all_flat, 1, x) for x in (radius, epsilon)]
    (r, r_power), (e, e_power), (u, u_power) = map(jnp.frexp, (*safe, unit))
    power = -2 * r_power - u_power
    c = jnp.ldexp(2 * e / (r**2 * u), e_power + power)
    # At 0 `frexp` and `ldexp` have no derivative of use; c is linear in ε.
    slope = jnp.minimum(jnp.ldexp(2 / (r**2 * u), power), jnp.finfo(dtype).max)
    c = jnp.where(e == 0, safe[1] * jax.lax.stop_gradient(slope), c)
    return jnp.where(all_flat, jnp.inf, c)


def eigenvalue_unit(measure: SpectralMeasure) -> Float[Array, ""]:
    """Return a power of two near the largest |λ|; a constant to differentiation."""
    return scale.magnitude(measure.nodes).reshape(())


def curvature_size(eigenvalues: Float[Array, "..."], negative: str) -> Float[Array, "..."]:
    """Return the curvature that counts: |λ| for "abs", max(λ, 0) for "clip"."""
    check_choice("negative", negative, NEGATIVE)
    return jnp.abs(eigenvalues) if negative == "abs" else jnp.maximum(eigenvalues, 0)


def curvature_share(
    eigenvalues: Float[Array, "..."], ridge: Any, *, negative: str = "abs"
) -> Float[Array, "..."]:
    """Return f(λ) = λ/(λ + c) of |λ| or max(λ, 0); 0 at λ = 0 for every c.

    Args:
        eigenvalues: λ, any shape.
        ridge: c ≥ 0, any shape that broadcasts with `eigenvalues`.
        negative: "abs" for |λ|, "clip" for max(λ, 0).

    Returns:
        f, in [0, 1], of the broadcast shape; NaN where λ is.

    Raises:
        TypeError: if `eigenvalues` or `ridge` is no real number or array.
        ValueError: if `negative` is unknown, or `ridge` is negative or NaN.

    >>> import jax.numpy as jnp
    >>> curvature_share(jnp.array([-1.0, 0.0, 3.0]), 1.0)
    Array([0.5 , 0.  , 0.75], dtype=float32)
    """
    check_real("eigenvalues", eigenvalues)
    check_range("ridge", ridge, 0)
    size = curvature_size(eigenvalues, negative)
    return jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, size + ridge))


def check_measure(name: str, measure: SpectralMeasure) -> None:
    """Raise unless `measure` is a measure with finite nodes and weights, as far as known."""
    if not isinstance(measure, SpectralMeasure):
        raise TypeError(
            f"{name} must be a SpectralMeasure (see spectrum.spectral_measure and "
            f"spectrum.exact_measure), got {type(measure).__name__}"
        )
    known = (measure.nodes, measure.weights)
    if is_concrete(known) and not all(np.isfinite(np.asarray(x)).all() for x in known):
        raise ValueError(f"{name} must have finite nodes and weights, got NaN or infinity")


def lower_bound(
    measure: SpectralMeasure, radius: Any, epsilon: Any, *, negative: str = "abs"
) -> Estimate:
    """Bound the pruning ratio from below, as published: the effective dimension of H over D.

    ρ_L(R) = (1/D) tr H(H + cI)⁻¹ = 1 - (1/D) Σ c/(λᵢ + c), c = 2ε/R². D(1 - ρ_L) is the statistical
    dimension of the cone of the ellipsoid {½wᵀHw ≤ ε} seen from distance R. The bound is the
    paper's prediction, not a theorem about a given network. No product with H is needed, so grids
    over R and ε are free.

    Args:
        measure: spectrum of H.
        radius: R ≥ 0, any shape; may exceed the norm of the weights.
        epsilon: ε ≥ 0, any shape that broadcasts with `radius`; of an `Estimate` its value is used.
        negative: "abs" or "clip".

    Returns:
        An `Estimate` of the broadcast shape; see `spectrum.trace_bracket` for its interval. 0 at
        R = 0 and ε = ∞; the share of nonzero eigenvalues at ε = 0 and R = ∞. NaN where the measure
        is NaN, which is possible only under `jit`.

    Raises:
        TypeError: if `measure` is no `SpectralMeasure`, or `radius` or `epsilon` no real number.
        ValueError: if `radius` or `epsilon` is negative or NaN, `negative` is unknown, or the
            measure is not finite.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> lower_bound(exact_measure(jnp.array([0.0, 2.0])), 1.0, 1.0).value
    Array(0.25, dtype=float32)

    Zhang, Zhang, Sun, Liu (2024), theorem 3.5.
    """
    check_measure("measure", measure)
    check_choice("negative", negative, NEGATIVE)
    epsilon = value_of(epsilon)
    check_range("radius", radius, 0)
    check_range("epsilon", epsilon, 0)
    return _lower_bounds(measure, jnp.asarray(radius), jnp.asarray(epsilon), negative)


@partial(jax.jit, static_argnums=3)
def _lower_bounds(
    measure: SpectralMeasure, radius: Array, epsilon: Array, negative: str
) -> Estimate:
    unit = eigenvalue_unit(measure)
    radius, epsilon = jnp.broadcast_arrays(radius, epsilon)
    thresholds = relative_ridge(radius, epsilon, unit)

    def at(c):
        share = trace_bracket(measure, lambda x: curvature_share(x / unit, c, negative=negative))
        ends = {name: _within_one(getattr(share, name)) for name in ("value", "lower", "upper")}
        return share._replace(**ends)

    flat = jax.lax.map(at, thresholds.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(thresholds.shape), flat)


def _within_one(ratio: Array) -> Array:
    """Clip to [0, 1] with the full derivative at the ends, where `jnp.clip` halves it."""
    return jnp.where(ratio < 0, 0, jnp.where(ratio > 1, 1, ratio))


def upper_bound(
    removed_measure: SpectralMeasure, radius: Any, epsilon: Any, *, dim: int, negative: str = "abs"
) -> Estimate:
    """Bound the pruning ratio from above, as published, from the Hessian of the removed weights.

    ρ_U(R) = 1 - (1/D) Σ_{i ≤ D-k} c/(λ̃ᵢ + c), λ̃ the eigenvalues of the principal submatrix of H on
    the D - k removed weights. ρ_L ≤ ρ_U for positive semi-definite H and for "clip", not for "abs".

    Args:
        removed_measure: spectrum of that submatrix; its `dim` is D - k.
        radius: R ≥ 0, any shape.
        epsilon: ε ≥ 0, any shape that broadcasts with `radius`.
        dim: D.
        negative: "abs" or "clip".

    Returns:
        An `Estimate` of the broadcast shape; k/D at R = 0.

    Raises:
        TypeError: as `lower_bound`.
        ValueError: as `lower_bound`, or if `dim` is below the measure's own.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> upper_bound(exact_measure(jnp.array([2.0])), 1.0, 1.0, dim=2).value
    Array(0.75, dtype=float32)

    Zhang, Zhang, Sun, Liu (2024), theorem 4.1.
    """
    estimate = gap(removed_measure, radius, epsilon, dim=dim, negative=negative)
    kept = (dim - removed_measure.dim) / dim
    return estimate._replace(
        value=estimate.value + kept, lower=estimate.lower + kept, upper=estimate.upper + kept
    )


def gap(
    removed_measure: SpectralMeasure, radius: Any, epsilon: Any, *, dim: int, negative: str = "abs"
) -> Estimate:
    """Return the gap between the two bounds where the lower one meets its own ratio.

    Δ = ρ_U - ρ_L = (1/D) tr f(H_removed) at ρ_L = k/D: one trace, not a difference of two.

    Args:
        removed_measure: spectrum of H on the D - k removed weights.
        radius: R(ρ*).
        epsilon: ε.
        dim: D.
        negative: "abs" or "clip".

    Returns:
        An `Estimate`, at most (D - k)/D.

    Raises:
        TypeError: as `lower_bound`.
        ValueError: as `upper_bound`.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> gap(exact_measure(jnp.array([2.0])), 1.0, 1.0, dim=2).value
    Array(0.25, dtype=float32)
    """
    check_measure("removed_measure", removed_measure)
    dim = check_count("dim", dim, removed_measure.dim)
    share = lower_bound(removed_measure, radius, epsilon, negative=negative)
    return jax.tree.map(lambda x: x * (removed_measure.dim / dim), share)


def trace_bound(trace: Any, radius: Any, epsilon: Any, *, dim: int) -> Float[Array, "..."]:
    """Bound ρ_L from above by the trace alone.

    ρ_L ≤ 1 - 2εD/(R² tr|H| + 2εD), by Jensen's inequality, since λ/(λ+c) is concave. So a flat
    landscape and small weights allow far pruning.

    Args:
        trace: tr|H|, or tr max(H, 0) for "clip"; tr H itself only if H is positive semi-definite.
        radius: R ≥ 0.
        epsilon: ε ≥ 0.
        dim: D.

    Returns:
        The bound; 0 at R = 0 and where the trace is 0.

    Raises:
        TypeError: if an argument is no real number or array, or `dim` no static int.
        ValueError: if an argument is negative or NaN, `trace` is infinite, or `dim` < 1.

    >>> trace_bound(2.0, 1.0, 1.0, dim=2)
    Array(0.33333334, dtype=float32)
    """
    epsilon = value_of(epsilon)
    check_range("trace", trace, 0)
    if not is_finite(trace):
        raise ValueError(f"trace must be finite, got {trace}")
    check_range("radius", radius, 0)
    check_range("epsilon", epsilon, 0)
    mean = jnp.asarray(trace, jnp.result_type(float)) / check_count("dim", dim)
    flat = mean == 0
    share = 1 / (1 + relative_ridge(radius, epsilon, jnp.where(flat, 1, mean)))
    return jnp.where(flat, 0, share)
