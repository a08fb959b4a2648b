"""Eigenpairs without a basis in memory: one Lanczos run for the values, the same again for vectors.

Without reorthogonalisation the run finds converged eigenvalues again and again (ghosts), but the
vectors of each copy are as good as any (Paige 1980), so that one copy of each is taken.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxlimit._host import HostMatvec
from jaxlimit._matvec import dot


def pick_distinct(
    diagonal: np.ndarray, off_diagonal: np.ndarray, num_pairs: int, which: str
) -> np.ndarray:
    """Choose eigenvectors of T, columns [m, k], one for each of the most extreme eigenvalues."""
    eps = np.finfo(diagonal.dtype).eps
    a, b = diagonal.astype(np.float64), off_diagonal.astype(np.float64)
    values, vectors = np.linalg.eigh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))
    errors = np.abs(b[-1] * vectors[-1])
    rank = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    apart = np.sqrt(eps) * np.abs(values).max()
    chosen: list[int] = []
    for i in np.argsort(rank):
        copies = [c for c, at in enumerate(chosen) if abs(values[at] - values[i]) <= apart]
        if copies and errors[i] < errors[chosen[copies[0]]]:
            chosen[copies[0]] = int(i)
        elif not copies and len(chosen) < num_pairs:
            chosen.append(int(i))
    return vectors[:, chosen].astype(diagonal.dtype)


def combine_again(
    matvec: Any,
    start: Float[Array, "D"],
    diagonal: Float[Array, "m"],
    off_diagonal: Float[Array, "m"],
    coefficients: Float[Array, "m k"],
) -> Float[Array, "k D"]:
    """Run the three-term recurrence again, its coefficients known, and sum what is wanted of it."""
    total = jnp.zeros((coefficients.shape[1], start.size), start.dtype)
    carry = (jnp.zeros_like(start), start, total)
    couplings = jnp.concatenate([jnp.zeros(1, diagonal.dtype), off_diagonal[:-1]])
    steps = (diagonal, couplings, off_diagonal, coefficients)
    if isinstance(matvec, HostMatvec):
        for step in zip(*steps, strict=True):
            carry = _again(matvec(carry[1]), carry, step)
        return carry[2]
    return _scan_again(matvec, carry, steps)[2]


@jax.jit
def _scan_again(matvec: Partial, carry: tuple, steps: tuple) -> tuple:
    def step(carry, step):
        return _again(matvec(carry[1]), carry, step), None

    return jax.lax.scan(step, carry, steps)[0]


@jax.jit
def _again(product: Array, carry: tuple, step: tuple) -> tuple:
    previous, current, total = carry
    diagonal, coupling, norm, coefficients = step
    total = total + coefficients[:, None] * current
    residual = product - coupling * previous - diagonal * current
    return current, jnp.where(norm > 0, residual / jnp.where(norm > 0, norm, 1), 0), total


def judge(matvec: Any, vectors: Float[Array, "k D"]) -> tuple[Array, Array]:
    """Return vᵀHv and ‖Hv - (vᵀHv) v‖ of each vector, from a product made for it."""
    pairs = []
    for vector in vectors:
        product = matvec(vector)
        value = dot(vector, product)
        pairs.append((value, jnp.linalg.norm(product - value * vector)))
    values, norms = zip(*pairs, strict=True)
    return jnp.stack(values), jnp.stack(norms)
