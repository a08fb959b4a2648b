"""Projections off orthonormal rows: what keeps vectors orthogonal, everywhere in the package."""

from jaxtyping import Array, Float

from jaxlimit._core.operator import dot


def project_off(
    vector: Float[Array, "D"], rows: Float[Array, "k D"]
) -> tuple[Float[Array, "D"], Float[Array, "k"]]:
    """Project a vector off orthonormal rows once; the coefficients that were taken off, too.

    Where most of the vector goes, what rounding leaves is no longer orthogonal: project again.

    >>> import jax.numpy as jnp
    >>> project_off(jnp.array([1.0, 2.0, 3.0]), jnp.eye(3)[:2])
    (Array([0., 0., 3.], dtype=float32), Array([1., 2.], dtype=float32))
    """
    coefficients = dot(rows, vector)
    return vector - dot(coefficients, rows), coefficients
