"""Norms and spreads whose squares neither overflow nor vanish where the result itself does not.

Everything is divided by a power of two near its largest magnitude before it is squared. This
changes no bit of the result unless squares leave the range of the type. Sums are in float32 at
least, whatever the type of their terms.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Axis = int | tuple[int, ...] | None


def wide_type(dtype: Any) -> jnp.dtype:
    """Return the type that sums of entries of `dtype` are taken in: float32 or wider.

    >>> wide_type(jnp.bfloat16), wide_type(jnp.float64)
    (dtype('float32'), dtype('float64'))
    """
    return jnp.promote_types(dtype, jnp.float32)


@partial(jax.jit, static_argnames="axis", inline=True)
def magnitude(array: Float[Array, "..."], axis: Axis = None) -> Float[Array, "..."]:
    """Return a power of two near the largest magnitude along `axis`, for dividing by.

    Never so small or large that a division by it, or the sum of the squares after it, leaves the
    range; NaN where there is one. A constant to differentiation. All axes are kept.

    >>> magnitude(jnp.array([0.0, -3e-30])), magnitude(jnp.zeros(2)) > 0
    (Array([3.1554436e-30], dtype=float32), Array([ True], dtype=bool))
    """
    array = jax.lax.stop_gradient(array.astype(wide_type(array.dtype)))
    info = jnp.finfo(array.dtype)
    limit = 2.0 ** (info.maxexp - 28)
    largest = jnp.max(jnp.abs(array), axis=axis, keepdims=True, initial=0)
    largest = jnp.clip(largest, 1 / limit, limit)
    return jax.lax.reduce_precision(largest, exponent_bits=info.nexp, mantissa_bits=0)


@partial(jax.jit, static_argnames=("axis", "keepdims"), inline=True)
def norm(
    array: Float[Array, "..."], axis: Axis = None, *, keepdims: bool = False
) -> Float[Array, "..."]:
    """Return the Euclidean norm along `axis`; its derivative at 0 is taken to be 0.

    >>> norm(jnp.array([3e-30, 4e-30])), norm(jnp.array([3e30, 4e30]))
    (Array(5.e-30, dtype=float32), Array(5.e+30, dtype=float32))
    """
    scale = magnitude(array, axis)
    square = jnp.sum((array.astype(scale.dtype) / scale) ** 2, axis=axis, keepdims=True)
    root = jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))
    result = scale * root
    return result if keepdims else jnp.squeeze(result, axis)


def deviation(samples: Float[Array, "..."], axis: int = 0, *, ddof: int = 1) -> Float[Array, "..."]:
    """Return the standard deviation of samples along `axis`, over n - `ddof`.

    >>> deviation(jnp.array([1e-30, 3e-30]))
    Array(1.4142135e-30, dtype=float32)
    """
    samples = samples.astype(wide_type(samples.dtype))
    centred = samples - samples.mean(axis, keepdims=True)
    return norm(centred, axis) / (samples.shape[axis] - ddof) ** 0.5


def eigh(matrix: Float[Array, "m m"]) -> tuple[Float[Array, "m"], Float[Array, "m m"]]:
    """Return eigenvalues and eigenvectors of a symmetric matrix of any scale, ascending.

    >>> eigh(jnp.array([[2e-30, 1e-30], [1e-30, 2e-30]]))[0]
    Array([1.e-30, 3.e-30], dtype=float32)
    """
    scale = magnitude(matrix)
    values, vectors = jnp.linalg.eigh(matrix / scale)
    return values * scale[0], vectors
