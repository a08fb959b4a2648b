"""One step of the recurrence, and how it is kept orthogonal."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxlimit._core.operator import dot
from jaxlimit._core.projection import project_off
from jaxlimit._core.scale import eigh, norm
from jaxlimit.lanczos import _basis
from jaxlimit.lanczos.state import LanczosState
from jaxlimit.lanczos.storage import NUM_LOCKED, WARM_UP


def step(matvec: Any, state: LanczosState) -> LanczosState:
    """Make one product and advance the recurrence by one step, unless it has ended."""
    j, current, mode = state.step, state.current, state.reorthogonalize
    room = j < state.diagonal.shape[0]
    coupling = jnp.where(j > 0, state.off_diagonal[jnp.maximum(j - 1, 0)], 0)
    product = matvec(current).astype(state.diagonal.dtype)
    finite = jnp.all(jnp.isfinite(product))
    running = room & jnp.any(current != 0)
    product = jnp.where(running & finite, product, 0) - coupling * state.previous
    diagonal = dot(current.astype(product.dtype), product)
    alive = running & finite & jnp.isfinite(diagonal)
    residual = jnp.where(alive, product - diagonal * current, 0)
    basis = state.basis
    if basis is not None:
        basis = _remember(basis, j, current, alive, mode)
    residual = _reorthogonalize(residual, basis, j, mode)
    size = norm(residual)
    failed = running & ~(alive & jnp.isfinite(size))
    diagonals = state.diagonal.at[j].add(jnp.where(alive, diagonal, 0), mode="drop")
    # A residual below the rounding of the products has no direction: the subspace is invariant.
    eps = jnp.finfo(current.dtype).eps
    scale = jnp.max(jnp.abs(diagonals)) + jnp.max(state.off_diagonal)
    goes_on = alive & ~failed & (size > 16 * eps * scale) & (state.num_valid + 1 < state.dim)
    following = jnp.where(goes_on, residual / jnp.where(goes_on, size, 1), 0).astype(current.dtype)
    size = jnp.where(goes_on, size, 0)
    off_diagonals = state.off_diagonal.at[j].add(size, mode="drop")
    if mode == "selective" and basis is not None:
        basis = _lock(basis, diagonals, off_diagonals, j)
    return replace(
        state,
        previous=jnp.where(room, current, state.previous),
        current=jnp.where(room, following, current),
        diagonal=diagonals,
        off_diagonal=off_diagonals,
        basis=basis,
        step=j + room,
        num_valid=state.num_valid + alive,
        failed_step=jnp.where(failed & (state.failed_step < 0), j, state.failed_step),
    )


def _remember(basis, step, current, alive, mode):
    if _goes_in_blocks(basis, current.dtype, mode):
        return _basis.write(basis, step, current, alive & (step < _warm_up(basis, mode)))
    row = jnp.where(alive, current, basis[jnp.minimum(step, basis.shape[0] - 1)])
    return basis.at[step].set(row, mode="drop")


def _goes_in_blocks(basis, dtype, mode) -> bool:
    """Whether a step reads some rows only; the other way has a reverse-mode derivative."""
    return mode == "selective" or _basis.is_stored(basis, dtype)


def _reorthogonalize(residual, basis, step, mode):
    if mode == "none":
        return residual
    if _goes_in_blocks(basis, residual.dtype, mode):
        return _reorthogonalize_in_blocks(residual, basis, step, mode)
    once, _ = project_off(residual, basis)
    return jax.lax.cond(
        _cancelled(once, residual), lambda: project_off(once, basis)[0], lambda: once
    )


def _cancelled(once, residual):
    # A second pass has nothing to remove unless the first cancelled digits (Daniel, Gragg, Kaufman,
    # Stewart 1976), and the passes are what reorthogonalisation costs.
    return norm(once) < 0.7 * norm(residual)


def _reorthogonalize_in_blocks(residual, basis, step, mode):
    """Project off the rows so far or, after the warm-up, off the locked ones alone."""
    warm_up = _warm_up(basis, mode)
    warm = step < warm_up
    first = jnp.where(warm, 0, warm_up)
    last = jnp.where(warm, step + 1, basis.shape[0])
    once = _basis.project_off_rows(residual, basis, first, last)
    # No branch: a loop of no rounds leaves the basis where it is.
    again = jnp.where(warm & _cancelled(once, residual), last, first)
    return _basis.project_off_rows(once, basis, first, again)


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
    values, vectors = eigh(tridiagonal)
    errors = jnp.abs(beta[-1] * vectors[-1])
    order = jnp.argsort(errors)[:NUM_LOCKED]
    # √eps is where a Ritz vector starts to come back into the recurrence (Parlett, Scott 1979).
    limit = jnp.finfo(alpha.dtype).eps ** 0.5 * jnp.max(jnp.abs(values))
    return jnp.where(errors[order] <= limit, vectors[:, order], 0)
