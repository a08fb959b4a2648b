"""Scalar numerics of the geometry: dtypes, Gamma ratios, normal tails, quadrature, root finding."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erfc
from jax.tree_util import Partial
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

from jaxlimit._core.checks import check_range, check_real
from jaxlimit._core.functions import Program

# Tests homogeneity: a power of two is exact in floating point, a large one leaves bounded sets.
STRETCH = 1024.0
TOLERANCE = 1e-3  # a user's iterative projection is not exact; a wrong one fails by far more

_LEGENDRE_NODES, _LEGENDRE_WEIGHTS = np.polynomial.legendre.leggauss(48)


def check_finite_range(name: str, value: Any, low: float = 0, *, open_low: bool = False) -> None:
    """Raise unless every entry of `value` is at least `low` and finite in its floating dtype."""
    check_real(name, value)
    largest = float(jnp.finfo(jnp.result_type(float, value)).max)
    check_range(name, value, low, largest, open_low=open_low)


def check_last_axis(name: str, value: Any) -> None:
    """Raise unless `value` holds vectors, with at least one entry, on its last axis."""
    check_real(name, value)
    if jnp.ndim(value) < 1 or jnp.shape(value)[-1] < 1:
        raise ValueError(
            f"{name} must have at least one entry on its last axis, got shape {jnp.shape(value)}"
        )


def check_vector(name: str, value: Any) -> None:
    """Raise unless `value` is one vector, with at least one entry."""
    check_real(name, value)
    if jnp.ndim(value) != 1 or jnp.shape(value)[0] < 1:
        raise ValueError(
            f"{name} must be a vector with at least one entry, got shape {jnp.shape(value)}"
        )


def check_point(name: str, point: Any, dim: int) -> None:
    """Raise unless `point` is a vector with `dim` entries."""
    check_real(name, point)
    if jnp.shape(point) != (dim,):
        raise ValueError(
            f"{name} must be a vector with {dim} entries, got shape {jnp.shape(point)}"
        )


def widened(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` of arrays, and run it in at least float32.

    Its arguments arrive as arrays of one floating dtype, Python and integer numbers in JAX's
    default one. Half precision is too narrow for quadrature: it is widened inside, and the results
    are narrowed again.
    """
    compiled = jax.jit(function)

    @wraps(function)
    def call(*values):
        dtype = jnp.result_type(float, *values)
        inner = jnp.promote_types(dtype, jnp.float32)
        results = compiled(*(jnp.asarray(value, inner) for value in values))
        return jax.tree.map(lambda result: result.astype(dtype), results)

    return call


@widened
def chi_mean(dim: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return E‖g‖₂ of a standard normal g in R^dim, √2 Γ((dim+1)/2) / Γ(dim/2).

    Ten steps of w(d) = w(d+2) d/(d+1) take the argument to where the asymptotic series of
    log Γ(x+½)/Γ(x) has converged. So no large log-gammas are subtracted, and every dim from 0 to
    10⁹ keeps full relative precision, in float32 and in float64.

    >>> chi_mean(1.0)  # √(2/π)
    Array(0.79788, dtype=float32)
    """
    far = dim + 20
    coefficients = (-1 / 4, 1 / 24, -1 / 20, 17 / 112, -31 / 36, 691 / 88)
    series = sum(c / far ** (2 * i + 1) for i, c in enumerate(coefficients))
    shift = jnp.prod(jnp.stack([(dim + i) / (dim + i + 1) for i in range(0, 20, 2)]), axis=0)
    return shift * jnp.sqrt(far) * jnp.exp(series)


def normal_tail(threshold: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return P(|g| > threshold) of a standard normal g."""
    return erfc(threshold * 0.5**0.5)


def excess_moments(threshold: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """Return E(|g|-t)₊ and E(|g|-t)₊² of a standard normal g, t = `threshold` ≥ 0."""
    tail = normal_tail(threshold)
    bump = (2 / np.pi) ** 0.5 * jnp.exp(-(threshold**2) / 2)
    first = bump - threshold * tail
    return first, tail - threshold * first


def integrate(
    integrand: Callable[[Array], Array], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Integrate elementwise from `low` to `high` by 48-point Gauss-Legendre.

    `integrand` gets the nodes along an extra last axis. Empty and reversed intervals give 0.
    """
    half = jnp.where(high < low, 0, high - low) / 2
    nodes = low[..., None] + half[..., None] * (1 + _LEGENDRE_NODES.astype(half.dtype))
    return half * (integrand(nodes) * _LEGENDRE_WEIGHTS.astype(half.dtype)).sum(-1)


def increasing_root(
    function: Callable[[Array], Array], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Find elementwise where an increasing function crosses 0 within [low, high], all of one shape.

    Bisection, then one Newton step that carries the derivatives: the root differentiates by the
    implicit function theorem. Without a crossing it returns the end nearer to one.
    """
    num_steps = 12 + jnp.finfo(low.dtype).nmant

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        below = function(middle) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    left, right = jax.lax.fori_loop(0, num_steps, halve, jax.lax.stop_gradient((low, high)))
    root = jax.lax.stop_gradient((left + right) / 2)
    value, slope = jax.jvp(function, (root,), (jnp.ones_like(root),))
    steppable = jnp.isfinite(value) & jnp.isfinite(slope) & (slope > 0)
    step = jnp.where(steppable, value, 0) / jax.lax.stop_gradient(jnp.where(steppable, slope, 1))
    return jnp.clip(root - step, low, high)


def as_operand(function: Callable[..., Any], like: Any = None) -> Partial:
    """Return `function` as a pytree; wrapping a Partial once more would defeat jit's cache.

    A function that is made in every call would defeat it too. With `like`, it is identified by what
    it computes of arguments of this shape and type, and must be called with no others.
    """
    if isinstance(function, Partial):
        return function
    return Partial(function if like is None else Program(function, like))


@jax.jit
def map_rows(function: Partial, rows: Float[Array, "n dim"]) -> Array:
    """Return `function` of every row."""
    return jax.vmap(function)(rows)


@partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def map_gaussian(
    sample: Callable[..., Array],
    operand: Any,
    key: PRNGKeyArray,
    dim: int,
    num_samples: int,
    batch_size: int,
    dtype: DTypeLike,
) -> Float[Array, " num_samples"]:
    """Return sample(operand, g) for independent standard normal g, `batch_size` at a time."""
    batch_size = min(batch_size, num_samples)

    def evaluate(key):
        # JAX's bfloat16 normals are lopsided, by 4 % in the energy of the positive half.
        points = jax.random.normal(key, (batch_size, dim), jnp.promote_types(dtype, jnp.float32))
        return jax.vmap(partial(sample, operand))(points.astype(dtype))

    keys = jax.random.split(key, -(-num_samples // batch_size))
    return jax.lax.map(evaluate, keys).ravel()[:num_samples]
