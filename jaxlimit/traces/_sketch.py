"""A sketch of an operator's range, and statistics that leave each of its test vectors out in turn.

The test vectors are exchangeable, so each can be left out of the sketch that it then tests. All of
this is done in the coordinates of one basis: with H Ω = Q R, only the i-th product has a component
along Q gᵢ, gᵢ the i-th column of R⁻ᵀ, so leaving ωᵢ out removes exactly that direction from Q.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlimit._core.estimate import Estimate, estimate_from_samples, t_interval
from jaxlimit._core.operator import (
    ALL_FINITE,
    Operator,
    dot,
    earlier_failure,
    first_non_finite,
    map_blocks,
)
from jaxlimit._core.scale import deviation, norm


class Sketch(NamedTuple):
    """An orthonormal basis of H Ω, and its products with H."""

    basis: Float[Array, "k D"]  # rows: the columns of Q
    images: Float[Array, "k D"]  # rows: H q
    R: Float[Array, "k k"]  # H Ω = Q R
    G: Float[Array, "k k"]  # R⁻ᵀ: Q gᵢ is normal to every product but the i-th
    failed: Int[Array, ""]  # index of the first product that was not finite, or `ALL_FINITE`


def sketch_range(matvec: Operator, probes: Float[Array, "k D"], block_size: int) -> Sketch:
    """Sketch the range with test vectors, the rows of `probes`; costs 2 k products."""
    products = map_blocks(matvec, probes, block_size)
    failed = first_non_finite(products)
    Q, R = jnp.linalg.qr(jnp.where(failed == ALL_FINITE, products, 0).T)
    images = map_blocks(matvec, Q.T, block_size)
    failed = earlier_failure(failed, first_non_finite(images), len(probes))
    # Test vectors with a density give products of full rank unless the range of H is smaller. Then
    # the others' products already span it: leaving one out leaves Q as it is, which G = 0 says.
    pivots = jnp.abs(jnp.diag(R))
    full = pivots.min() > len(R) * jnp.finfo(R.dtype).eps * pivots.max()
    identity = jnp.eye(len(R), dtype=R.dtype)
    G = jax.scipy.linalg.solve_triangular(jnp.where(full, R, identity), identity, trans=1)
    return Sketch(Q.T, images, R, jnp.where(full, G, 0), failed)


def normalize_columns(G: Float[Array, "k k"]) -> tuple[Array, Array]:
    """Return columns of norm 1, or 0 where they were 0, and the inverse norms."""
    norms = norm(G, 0)
    inverse_norms = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
    return G * inverse_norms, inverse_norms


def exchangeable_estimate(G: Float[Array, "k k"], samples: Callable) -> Estimate:
    """Average leave-one-out samples, with the jackknife over the test vectors for the interval.

    Args:
        G: of the sketch.
        samples: `samples(P, G, num_out)` -> [k, ...], the sample of each test vector from a sketch
            whose coordinates (and G) are projected by P, with `num_out` test vectors left out of
            each: P = I and 1 for the estimate itself, 2 for the jackknife, which leaves one vector
            out of everything and takes the mean over the others.
    """
    k = len(G)
    identity = jnp.eye(k, dtype=G.dtype)
    estimate = estimate_from_samples(samples(identity, G, 1))
    if k == 1:
        return estimate
    S, _ = normalize_columns(G)

    def without(index):
        others = 1 - identity[index]
        P = identity - jnp.outer(S[:, index], S[:, index])
        return dot(others / (k - 1), samples(P, dot(P, G) * others, 2))

    jackknife = deviation(jax.lax.map(without, jnp.arange(k)), ddof=0) * (k - 1) ** 0.5
    joint = t_interval(estimate.value, jnp.maximum(jackknife, estimate.standard_error), k - 1)
    return joint._replace(standard_error=estimate.standard_error)
