"""One step of the recurrence, and how it is kept orthogonal."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlimit._core.operator import dot
from jaxlimit.lanczos import _basis
from jaxlimit.lanczos.state import NUM_LOCKED, WARM_UP, LanczosState


def step(matvec: Any, state: LanczosState, mode: str) -> LanczosState:
    """Make one product and carry the recurrence on by it, if it can go on."""
    j, current = state.step, state.current
    room = j < state.diagonal.shape[0]
    coupling = jnp.where(j > 0, state.off_diagonal[jnp.maximum(j - 1, 0)], 0)
    product = matvec(current)
    finite = jnp.all(jnp.isfinite(product))
    alive = room & finite & jnp.any(current != 0)
    product = jnp.where(alive, product, 0) - coupling * state.previous
    diagonal = dot(current, product)
    residual = product - diagonal * current
    basis = state.basis
    if basis is not None:
        basis = _remember(basis, j, current, alive, mode)
    residual = _reorthogonalize(residual, basis, j, mode)
    norm = jnp.linalg.norm(residual)
    diagonals = state.diagonal.at[j].add(jnp.where(alive, diagonal, 0), mode="drop")
    # What is left below the rounding of the products is no direction: the subspace is invariant.
    eps = jnp.finfo(current.dtype).eps
    scale = jnp.max(jnp.abs(diagonals)) + jnp.max(state.off_diagonal)
    goes_on = alive & (norm > 16 * eps * scale) & (state.num_valid + 1 < state.dim)
    following = jnp.where(goes_on, residual / jnp.where(goes_on, norm, 1), 0)
    norm = jnp.where(goes_on, norm, 0)
    off_diagonals = state.off_diagonal.at[j].add(norm, mode="drop")
    if mode == "selective" and basis is not None:
        basis = _lock(basis, diagonals, off_diagonals, j)
    return LanczosState(
        previous=jnp.where(room, current, state.previous),
        current=jnp.where(room, following, current),
        diagonal=diagonals,
        off_diagonal=off_diagonals,
        basis=basis,
        step=j + room,
        num_valid=state.num_valid + alive,
        failed_step=jnp.where(room & ~finite & (state.failed_step < 0), j, state.failed_step),
        dim=state.dim,
    )


def _remember(basis, step, current, alive, mode):
    if _goes_in_blocks(basis, current.dtype, mode):
        return _basis.write(basis, step, current, alive & (step < _warm_up(basis, mode)))
    row = jnp.where(alive, current, basis[jnp.minimum(step, basis.shape[0] - 1)])
    return basis.at[step].set(row, mode="drop")


def _goes_in_blocks(basis, dtype, mode) -> bool:
    """Whether only some rows are read at each step; the rest is differentiable in reverse."""
    return mode == "selective" or _basis.is_stored(basis, dtype)


def _reorthogonalize(residual, basis, step, mode):
    if mode == "none":
        return residual
    if _goes_in_blocks(basis, residual.dtype, mode):
        return _reorthogonalize_in_blocks(residual, basis, step, mode)
    once = _project_off(residual, basis)
    return jax.lax.cond(_cancelled(once, residual), lambda: _project_off(once, basis), lambda: once)


def _cancelled(once, residual):
    # A second pass has nothing to remove unless the first cancelled digits (Daniel, Gragg, Kaufman,
    # Stewart 1976), and the passes are what reorthogonalisation costs.
    return jnp.linalg.norm(once) < 0.7 * jnp.linalg.norm(residual)


def _reorthogonalize_in_blocks(residual, basis, step, mode):
    """Project off the rows so far or, after the warm-up, off the locked ones; no row in vain."""
    warm_up = _warm_up(basis, mode)
    warm = step < warm_up
    first = jnp.where(warm, 0, warm_up)
    last = jnp.where(warm, step + 1, basis.shape[0])
    once = _basis.project_off(residual, basis, first, last)
    # No branch: a loop of no rounds leaves the basis where it is.
    again = jnp.where(warm & _cancelled(once, residual), last, first)
    return _basis.project_off(once, basis, first, again)


def _warm_up(basis, mode) -> int:
    """Count the rows that Lanczos vectors are written into."""
    return basis.shape[0] - (NUM_LOCKED if mode == "selective" else 0)


def _lock(basis, diagonals, off_diagonals, step):
    """After the warm-up, write its converged Ritz vectors into the rows for them."""
    size = _warm_up(basis, "selective")
    if size < WARM_UP:
        return basis  # no step follows
    converged = partial(_converged, diagonals[:size], off_diagonals[:size])
    nothing = jnp.zeros((size, NUM_LOCKED), diagonals.dtype)
    now = step == size - 1
    return _basis.combine(basis, jax.lax.cond(now, converged, lambda: nothing), now)


def _converged(alpha, beta):
    """Combinations of the basis that are its converged Ritz vectors, best first, then zeros."""
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    errors = jnp.abs(beta[-1] * vectors[-1])
    order = jnp.argsort(errors)[:NUM_LOCKED]
    # √eps is where a Ritz vector starts to come back into the recurrence (Parlett, Scott 1979).
    limit = jnp.finfo(alpha.dtype).eps ** 0.5 * jnp.max(jnp.abs(values))
    return jnp.where(errors[order] <= limit, vectors[:, order], 0)


def _project_off(vector: Float[Array, "D"], rows: Float[Array, "k D"]) -> Float[Array, "D"]:
    return vector - dot(dot(rows, vector), rows)
