"""Statistical dimension δ(C) = E‖Π_C(g)‖² of the usual cones, in closed form or by quadrature.

Everything here is elementwise in its arguments (an ellipsoid takes its semi-axes on the last one),
runs under `jit`, `vmap` and `grad`, and keeps the floating dtype it is given.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_choice, check_range, check_real, is_concrete
from jaxlimit.geometry._numerics import (
    check_finite_range,
    excess_moments,
    increasing_root,
    integrate,
    widened,
)

Scalar = Float[Array, "..."] | float


def statistical_dimension_subspace(k: Scalar) -> Float[Array, "..."]:
    """Return δ(L) = k, the dimension of the subspace.

    Args:
        k: dimension of the subspace, ≥ 0.

    Returns:
        k as a float; δ of the polar, the orthogonal complement, is D - k.

    Raises:
        ValueError: if k is negative or not finite.

    >>> statistical_dimension_subspace(3)
    Array(3., dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), section 3.
    """
    check_finite_range("k", k)
    return jnp.asarray(k, jnp.result_type(float, k))


def statistical_dimension_orthant(dim: Scalar) -> Float[Array, "..."]:
    """Return δ(R₊^D) = D/2; the orthant is its own polar up to sign.

    Args:
        dim: D ≥ 0, finite.

    Returns:
        D/2.

    Raises:
        ValueError: if `dim` is negative or not finite.

    >>> statistical_dimension_orthant(7)
    Array(3.5, dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), proposition 3.2.
    """
    check_finite_range("dim", dim)
    return jnp.asarray(dim, jnp.result_type(float, dim)) / 2


def statistical_dimension_psd_cone(n: Scalar) -> Float[Array, "..."]:
    """Return δ = n(n+1)/4 of the positive semidefinite n by n matrices.

    The cone is self-dual in the space of symmetric matrices, of dimension n(n+1)/2, and a
    self-dual cone has half the dimension of its space.

    Args:
        n: number of rows of the matrices, ≥ 0.

    Returns:
        n(n+1)/4, exactly where the dtype holds it.

    Raises:
        ValueError: if n is negative or not finite.

    >>> statistical_dimension_psd_cone(4)
    Array(5., dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), proposition 3.2.
    """
    check_finite_range("n", n)
    return _psd_cone(n)


@widened
def _psd_cone(n: Array) -> Array:
    # n (n+1) may overflow, and XLA would compute n/2 (n+1)/2 by way of it.
    return n * (n / 4 + 1 / 4)


def check_circular(dim: Scalar, half_angle: Scalar) -> None:
    """Raise unless (dim, half_angle) describe a circular cone."""
    check_finite_range("dim", dim, 2)
    # π/2 rounded to the caller's dtype may lie above π/2 rounded to ours.
    check_real("half_angle", half_angle)
    dtype = jnp.result_type(float, half_angle)
    check_range("half_angle", half_angle, 0, (np.pi / 2) * (1 + float(jnp.finfo(dtype).eps)))


def latitude_mass(
    dim: Array, low: Scalar, high: Scalar, angle: Array | None = None
) -> Float[Array, "..."]:
    """Integrate cosᴰ⁻² t, times sin²(angle+t) if one is given, over latitudes t in [low, high].

    cosᴰ⁻² t is the density, up to scale, of the angle between a uniform direction in R^D and the
    equator. It is negligible beyond 9 standard deviations, so no nodes are placed there.
    """
    reach = jnp.minimum(np.pi / 2, 9 / jnp.sqrt(dim - 1))
    low = jnp.clip(low, -reach, None)
    end = jax.lax.stop_gradient(jnp.maximum(low, 0) + reach)
    high = jnp.where(high > end, end, high)

    def integrand(latitude):
        # Near the equator log cos t as log1p(-sin² t) / 2, for there cos t rounds to 1.
        square = jnp.sin(latitude) ** 2
        tiny = jnp.finfo(latitude.dtype).tiny
        near = jnp.log1p(-jnp.minimum(square, 0.5)) / 2
        log_cosine = jnp.where(square < 0.5, near, jnp.log(jnp.maximum(jnp.cos(latitude), tiny)))
        power = dim[..., None] - 2
        density = jnp.exp(jnp.where(power == 0, 0, power * log_cosine))
        return density if angle is None else density * jnp.sin(angle[..., None] + latitude) ** 2

    return integrate(integrand, low, high)


def statistical_dimension_circular_cone(
    dim: Scalar, half_angle: Scalar, *, method: str = "exact"
) -> Float[Array, "..."]:
    """Return δ of the cone {x : ⟨x, axis⟩ ≥ ‖x‖ cos α} in R^D.

    With t the latitude of a uniform direction above the equator of the axis,

        δ = D E[h(t)],  h(t) = 0 for t < -α,  sin²(α+t) in between,  1 for t > π/2-α,

    an exact integral against cosᴰ⁻² t. Where the two end pieces of h carry no mass it is
    D sin²α + cos 2α, which `method="asymptotic"` returns.

    Args:
        dim: D ≥ 2, finite, of any shape.
        half_angle: α in radians, in [0, π/2]; broadcasts against `dim`.
        method: "exact" (96 function evaluations) or "asymptotic" (the error falls
            exponentially in D min(sin²α, cos²α); it is wrong by ½ at α = 0 and π/2).

    Returns:
        δ, from 1/2 (a ray, α = 0) to D - 1/2 (a half-space, α = π/2).

    Raises:
        ValueError: if an argument is out of range or not finite.

    >>> statistical_dimension_circular_cone(100, 0.5)
    Array(23.52, dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), proposition 3.4.
    """
    check_circular(dim, half_angle)
    check_choice("method", method, ("exact", "asymptotic"))
    return (_circular if method == "exact" else _circular_asymptotic)(dim, half_angle)


@widened
def _circular_asymptotic(dim: Array, angle: Array) -> Array:
    return dim * jnp.sin(angle) ** 2 + jnp.cos(2 * angle)


@widened
def _circular(dim: Array, angle: Array) -> Array:
    dim, angle = jnp.broadcast_arrays(dim, angle)
    inside = latitude_mass(dim, np.pi / 2 - angle, np.pi / 2)
    beside = latitude_mass(dim, -angle, np.pi / 2 - angle, angle)
    total = 2 * latitude_mass(dim, 0.0, np.pi / 2)
    return dim * (inside + beside) / total


def statistical_dimension_l1_descent_cone(dim: Scalar, num_nonzero: Scalar) -> Float[Array, "..."]:
    """Return δ of the descent cone of ‖·‖₁ at a vector with s nonzeros in R^D.

    The minimum of the convex function

        J(τ) = s (1+τ²) + (D-s) E(|g|-τ)₊²,   τ ≥ 0,

    an upper bound on δ that exceeds it by at most 2 √(D/s): the Donoho-Tanner weak transition.

    Args:
        dim: D ≥ 1, finite.
        num_nonzero: s in [0, D]; broadcasts against `dim`. At s = 0 the cone is {0} and δ = 0; at
            s = D it is a half-space, where this gives D in place of D - 1/2.

    Returns:
        min J, differentiable in both arguments; at s = 0 the slope is infinite and returned as 0.

    Raises:
        ValueError: if an argument is out of range or not finite.

    >>> statistical_dimension_l1_descent_cone(100, 10)
    Array(32.88, dtype=float32)

    Amelunxen, Lotz, McCoy, Tropp (2014), proposition 4.5.
    """
    check_finite_range("dim", dim, 1)
    check_range("num_nonzero", num_nonzero, 0)
    if is_concrete(dim, num_nonzero):
        check_range("num_nonzero / dim", np.asarray(num_nonzero) / np.asarray(dim), 0, 1)
    return _l1_descent_cone(dim, num_nonzero)


@widened
def _l1_descent_cone(dim: Array, nonzero: Array) -> Array:
    dim, nonzero = jnp.broadcast_arrays(dim, nonzero)
    density = nonzero / dim

    def half_slope(threshold):
        return density * threshold - (1 - density) * excess_moments(threshold)[0]

    # By the envelope theorem the minimiser's own derivative does not count.
    threshold = jax.lax.stop_gradient(
        increasing_root(half_slope, jnp.zeros_like(density), jnp.full_like(density, 13.0))
    )
    objective = nonzero * (1 + threshold**2) + (dim - nonzero) * excess_moments(threshold)[1]
    return jnp.where(nonzero > 0, objective, 0)
