"""Gaussian width ½ E sup_{x,y ∈ S} ⟨g, x-y⟩ of the usual sets, in closed form or by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit.geometry._numerics import (
    check_finite_range,
    check_last_axis,
    chi_mean,
    excess_moments,
    increasing_root,
    integrate,
    normal_tail,
    widened,
)

Scalar = Float[Array, "..."] | float


def gaussian_width_ball(dim: Scalar, radius: Scalar) -> Float[Array, "..."]:
    """Return the width of {x : ‖x‖₂ ≤ r}, r E‖g‖₂ = r √2 Γ((D+1)/2) / Γ(D/2).

    Args:
        dim: D ≥ 0, finite, [...].
        radius: r ≥ 0, finite; broadcasts.

    Returns:
        The width, in the unit of `radius`.

    Raises:
        ValueError: if an argument is negative or not finite.

    >>> gaussian_width_ball(3, 1.0)  # √(8/π)
    Array(1.5958, dtype=float32)

    Vershynin (2018), section 7.5.
    """
    check_finite_range("dim", dim)
    check_finite_range("radius", radius)
    return _ball(dim, radius)


@widened
def _ball(dim: Array, radius: Array) -> Array:
    return radius * chi_mean(dim)


def gaussian_width_box(half_widths: Float[Array, "... dim"]) -> Float[Array, "..."]:
    """Return the width of ∏ [-b_i, b_i], √(2/π) Σ b_i; its center does not matter.

    Args:
        half_widths: b, [..., D], ≥ 0, finite.

    Returns:
        The width, [...].

    Raises:
        ValueError: if `half_widths` has no entries, or one that is negative or not finite.

    >>> gaussian_width_box(jnp.ones(2))
    Array(1.5958, dtype=float32)

    Vershynin (2018), section 7.5.
    """
    check_last_axis("half_widths", half_widths)
    check_finite_range("half_widths", half_widths)
    return _box(half_widths)


@widened
def _box(half_widths: Array) -> Array:
    return (2 / np.pi) ** 0.5 * half_widths.sum(-1)


def gaussian_width_ellipsoid(semi_axes: Float[Array, "... dim"]) -> Float[Array, "..."]:
    """Return the width of {x : Σ x_i²/r_i² ≤ 1}, E √(Σ r_i² g_i²), by exact quadrature.

    From √q = (1/√π) ∫₀^∞ (1 - e^{-s²q}) s⁻² ds, by parts and with E e^{-s²Q} in closed form,

        w = (1/√π) ∫₀^∞ ∏ (1+2s²r_i²)^{-½} Σ 2r_i²/(1+2s²r_i²) ds,

    by the trapezoidal rule in y, s = exp(3/2 sinh y), which converges exponentially.

    Args:
        semi_axes: r, [..., D], ≥ 0, finite.

    Returns:
        The width, [...], to the precision of the dtype; 93 passes over `semi_axes`, O(D) memory.
        Like a norm it has no derivative where all semi-axes are 0; it is NaN there.

    Raises:
        ValueError: if `semi_axes` has no entries, or one that is negative or not finite.

    >>> gaussian_width_ellipsoid(jnp.ones(3))  # the ball, √(8/π)
    Array(1.5958, dtype=float32)

    Derived above.
    """
    check_last_axis("semi_axes", semi_axes)
    check_finite_range("semi_axes", semi_axes)
    return _ellipsoid(semi_axes)


@widened
def _ellipsoid(semi_axes: Array) -> Array:
    largest = semi_axes.max(-1, keepdims=True)
    squares = (semi_axes / jnp.where(largest > 0, largest, 1)) ** 2
    total = squares.sum(-1)
    squares = squares / jnp.where(total > 0, total, 1)[..., None]
    step = 0.08
    grid = np.arange(-4.0, 3.4, step)
    nodes = np.exp(1.5 * np.sinh(grid))
    weights = step * nodes * 1.5 * np.cosh(grid)

    def add(width, node_and_weight):
        node, weight = node_and_weight
        spread = 2 * node**2 * squares
        decay = jnp.exp(-jnp.log1p(spread).sum(-1) / 2)
        return width + weight * decay * (2 * squares / (1 + spread)).sum(-1), None

    pairs = (jnp.asarray(nodes, total.dtype), jnp.asarray(weights, total.dtype))
    width = jax.lax.scan(add, jnp.zeros_like(total), pairs)[0] / np.pi**0.5
    return largest[..., 0] * jnp.sqrt(total) * width


def gaussian_width_cross_polytope(dim: Scalar, radius: Scalar) -> Float[Array, "..."]:
    """Return the width of {x : ‖x‖₁ ≤ r}, r E max|g_i| = r ∫₀^∞ 1 - P(|g| ≤ t)ᴰ dt, by quadrature.

    Args:
        dim: D ≥ 1, finite, [...].
        radius: r ≥ 0, finite; broadcasts.

    Returns:
        The width, in the unit of `radius`; about r √(2 log D).

    Raises:
        ValueError: if an argument is out of range or not finite.

    >>> gaussian_width_cross_polytope(2, 1.0)  # 2/√π
    Array(1.12838, dtype=float32)

    Vershynin (2018), section 7.5.
    """
    check_finite_range("dim", dim, 1)
    check_finite_range("radius", radius)
    return _cross_polytope(dim, radius)


@widened
def _cross_polytope(dim: Array, radius: Array) -> Array:
    dim, radius = jnp.broadcast_arrays(dim, radius)

    def exceedance(threshold):
        log_inside = jnp.log1p(-jnp.minimum(normal_tail(threshold), 1))
        return -jnp.expm1(dim[..., None] * log_inside)

    pieces = [integrate(exceedance, low + 0 * dim, low + 2 + 0 * dim) for low in range(0, 14, 2)]
    return radius * sum(pieces)


def gaussian_width_l1_l2_ball(
    dim: Scalar, l1_radius: Scalar, l2_radius: Scalar
) -> Float[Array, "..."]:
    """Return the large-D width of {x : ‖x‖₁ ≤ τ, ‖x‖₂ ≤ r}.

    The support function is min_λ λτ + r ‖(|g|-λ)₊‖₂; its expectation is at most

        min_{λ≥0} λτ + r √(D E(|g|-λ)₊²),

    which is returned: an upper bound, sharp once ‖(|g|-λ)₊‖₂ concentrates (many entries exceed λ,
    that is τ/r ≫ 1). Sample with `l1_l2_ball_support` for the exact width.

    Args:
        dim: D ≥ 1, finite, [...].
        l1_radius: τ ≥ 0, finite; broadcasts.
        l2_radius: r ≥ 0, finite, in the same unit; broadcasts.

    Returns:
        The bound, in the unit of the radii.

    Raises:
        ValueError: if an argument is out of range or not finite.

    >>> gaussian_width_l1_l2_ball(1000, 5.0, 1.0)
    Array(13.397, dtype=float32)

    Derived above; compare Plan, Vershynin (2013), section 2.
    """
    check_finite_range("dim", dim, 1)
    check_finite_range("l1_radius", l1_radius)
    check_finite_range("l2_radius", l2_radius)
    return _l1_l2_ball(dim, l1_radius, l2_radius)


@widened
def _l1_l2_ball(dim: Array, l1_radius: Array, l2_radius: Array) -> Array:
    dim, l1_radius, l2_radius = jnp.broadcast_arrays(dim, l1_radius, l2_radius)
    scale = l2_radius * jnp.sqrt(dim)
    tiny = jnp.finfo(dim.dtype).tiny

    def slope(threshold):
        first, second = excess_moments(threshold)
        return l1_radius - scale * first / jnp.sqrt(jnp.maximum(second, tiny))

    threshold = increasing_root(slope, jnp.zeros_like(dim), jnp.full_like(dim, 13.0))
    threshold = jax.lax.stop_gradient(threshold)
    spread = jnp.sqrt(jnp.maximum(excess_moments(threshold)[1], 0))
    return threshold * l1_radius + scale * spread
