"""The Lanczos recurrence: a symmetric operator seen from one vector, as a tridiagonal matrix.

The recurrence is a pytree, `LanczosState`, that `start` makes, `extend` carries on by as many steps
as one likes, and `finish` reads out; `tridiagonalize` is the three in a row. Whatever goes wrong
numerically (an invariant subspace, a product that is not finite) ends the recurrence where it
stands and is told in the result; it never spreads NaN.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxlimit._checks import check_choice, check_count, is_concrete, is_finite
from jaxlimit._eigenpairs import Eigenpairs, extremal_eigenpairs  # noqa: F401 (public here)
from jaxlimit._host import HostMatvec
from jaxlimit._matvec import dot, prepare

REORTHOGONALIZE = ("full", "selective", "none")
WARM_UP = 48  # steps that "selective" reorthogonalises fully
NUM_LOCKED = 24  # converged Ritz vectors that it goes on with, at most


class Tridiagonalization(NamedTuple):
    """H Q = Q T + β_m q_{m+1} e_mᵀ, with T tridiagonal and the rows of `basis` the columns of Q.

    Attributes:
        diagonal: α₁ … α_m of T.
        off_diagonal: β₁ … β_{m-1} of T.
        basis: the Lanczos vectors, row j the j-th; None if not kept.
        residual_norm: β_m, 0 where the subspace is invariant.
        num_valid: steps taken before an invariant subspace or a non-finite product ended the
            recurrence; all entries past it are 0.
        failed_step: the step (from 0) whose product was not finite; -1 if none.
    """

    diagonal: Float[Array, "m"]
    off_diagonal: Float[Array, "m-1"]
    basis: Float[Array, "m D"] | None
    residual_norm: Float[Array, ""]
    num_valid: Int[Array, ""]
    failed_step: Int[Array, ""]


class LanczosState(NamedTuple):
    """Everything the recurrence needs to go on: two vectors, T so far, and the basis if kept.

    Attributes:
        previous: q_{j-1}.
        current: q_j, zero once the recurrence has ended.
        diagonal: α, allocated for the greatest depth.
        off_diagonal: β, including the last, which couples to `current`.
        basis: the Lanczos vectors, allocated for the greatest depth; if "selective" those of the
            warm-up, and after it the converged Ritz vectors; None if not kept.
        step: steps asked for so far.
        num_valid: steps that were possible.
        failed_step: as in `Tridiagonalization`.
    """

    previous: Float[Array, "D"]
    current: Float[Array, "D"]
    diagonal: Float[Array, "m"]
    off_diagonal: Float[Array, "m"]
    basis: Float[Array, "b D"] | None
    step: Int[Array, ""]
    num_valid: Int[Array, ""]
    failed_step: Int[Array, ""]


def tridiagonalize(
    matvec: Any,
    start_vector: Float[Array, "D"],
    *,
    num_steps: int,
    reorthogonalize: str = "full",
    keep_basis: bool | None = None,
) -> Tridiagonalization:
    """Run Lanczos from a start vector.

    β_j q_{j+1} = H q_j - α_j q_j - β_{j-1} q_{j-1}. Costs `num_steps` products; reorthogonalised
    fully, also 2·num_steps²·D multiply-adds and a basis of num_steps·D numbers; selectively,
    2·48²·D + 48·num_steps·D multiply-adds and a basis of 48·D. Twice that where steps cancel.

    Args:
        matvec: H, a symmetric `Array[D] -> Array[D]`.
        start_vector: q₁ before normalisation, real floating, not zero.
        num_steps: m; more than D is clamped to D.
        reorthogonalize: "full" keeps the basis orthonormal to working precision, so that no
            eigenvalue is found twice; "none" stores no basis and finds converged eigenvalues again
            (ghosts), which leaves quadrature valid (Greenbaum 1989) but costs depth; "selective"
            reorthogonalises the first 48 steps fully and all later ones against the Ritz vectors
            that have converged by then, the outliers, whose ghosts are the first to come.
        keep_basis: whether the result carries the basis; by default it does if "full", and it
            cannot if "selective".

    Returns:
        A `Tridiagonalization`; an invariant subspace ends it early, see `num_valid`.

    Raises:
        TypeError: if `start_vector` is not a real floating vector.
        ValueError: if `start_vector` is zero, not finite or no vector, `num_steps` < 1,
            `reorthogonalize` is unknown, or `matvec` returns another shape.

    >>> import jax.numpy as jnp
    >>> result = tridiagonalize(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2), num_steps=2)
    >>> result.diagonal.round(3), result.off_diagonal.round(3)
    (Array([2., 2.], dtype=float32), Array([1.], dtype=float32))

    Lanczos (1950); Paige (1972) for the order of operations; Parlett, Scott (1979) for selective
    orthogonalisation; Parlett (1998), chapter 13.
    """
    state = start(
        start_vector, num_steps=num_steps, reorthogonalize=reorthogonalize, keep_basis=keep_basis
    )
    num_steps = state.diagonal.shape[0]
    matvec, _, _ = prepare(matvec, state.current.size, state.current.dtype)
    state = extend(matvec, state, num_steps=num_steps, reorthogonalize=reorthogonalize)
    return finish(state)


def start(
    start_vector: Float[Array, "D"],
    *,
    num_steps: int,
    reorthogonalize: str = "full",
    keep_basis: bool | None = None,
) -> LanczosState:
    """Begin a recurrence with room for `num_steps` steps.

    Args:
        start_vector: as for `tridiagonalize`.
        num_steps: the greatest depth that `extend` may reach; clamped to D.
        reorthogonalize: as for `tridiagonalize`.
        keep_basis: as for `tridiagonalize`.

    Returns:
        The state before the first step.

    Raises:
        TypeError: as `tridiagonalize`.
        ValueError: as `tridiagonalize`.

    >>> import jax.numpy as jnp
    >>> state = start(jnp.ones(3), num_steps=2, reorthogonalize="none")
    >>> finish(extend(lambda v: 2 * v, state, num_steps=1, reorthogonalize="none")).num_valid
    Array(1, dtype=int32)
    """
    check_choice("reorthogonalize", reorthogonalize, REORTHOGONALIZE)
    start_vector = _check_start(start_vector)
    (dim,) = start_vector.shape
    num_steps = min(check_count("num_steps", num_steps), dim)
    rows = {"full": num_steps, "selective": min(WARM_UP, num_steps), "none": 0}[reorthogonalize]
    if keep_basis is not None and keep_basis != (rows > 0) and reorthogonalize != "none":
        raise ValueError(
            f"keep_basis must not be {keep_basis} where reorthogonalize is {reorthogonalize!r}"
        )
    rows = num_steps if keep_basis else rows
    dtype = start_vector.dtype
    norm = jnp.linalg.norm(start_vector)
    return LanczosState(
        previous=jnp.zeros_like(start_vector),
        current=start_vector / jnp.where(norm > 0, norm, 1),
        diagonal=jnp.zeros(num_steps, dtype),
        off_diagonal=jnp.zeros(num_steps, dtype),
        basis=jnp.zeros((rows, dim), dtype) if rows else None,
        step=jnp.int32(0),
        num_valid=jnp.int32(0),
        failed_step=jnp.int32(-1),
    )


def extend(
    matvec: Any, state: LanczosState, *, num_steps: int, reorthogonalize: str = "full"
) -> LanczosState:
    """Carry a recurrence on by `num_steps` steps, in one `scan`.

    Args:
        matvec: the same operator as before; one that loops over data on the host
            (`curvature.hessian_matvec_over`) is called eagerly, step by step.
        state: from `start` or an earlier `extend`. Steps past its room change nothing.
        num_steps: steps to take now.
        reorthogonalize: as it was for `start`.

    Returns:
        The state after them; the same bits however the steps are cut into calls.

    Raises:
        ValueError: if `num_steps` < 1 or `reorthogonalize` is unknown or needs the basis.
    """
    num_steps = check_count("num_steps", num_steps)
    check_choice("reorthogonalize", reorthogonalize, REORTHOGONALIZE)
    if reorthogonalize != "none" and state.basis is None:
        raise ValueError(
            f"reorthogonalize={reorthogonalize!r} needs a state with a basis, got basis None"
        )
    matvec, _, _ = prepare(matvec, state.current.size, state.current.dtype)
    if isinstance(matvec, HostMatvec):
        for _ in range(num_steps):
            state = _advance(matvec(state.current), state, reorthogonalize)
        return state
    return _extend(matvec, state, num_steps, reorthogonalize)


def finish(state: LanczosState) -> Tridiagonalization:
    """Read a recurrence out; the state can still be extended."""
    last = jnp.maximum(state.num_valid - 1, 0)
    return Tridiagonalization(
        diagonal=state.diagonal,
        off_diagonal=state.off_diagonal[:-1],
        basis=state.basis,
        residual_norm=state.off_diagonal[last],
        num_valid=state.num_valid,
        failed_step=state.failed_step,
    )


@partial(jax.jit, static_argnums=(2, 3))
def _extend(matvec: Partial, state: LanczosState, num_steps: int, mode: str) -> LanczosState:
    def step(state, _):
        return _step(matvec, state, mode), None

    return jax.lax.scan(step, state, length=num_steps)[0]


@partial(jax.jit, static_argnums=2)
def _advance(product: Array, state: LanczosState, mode: str) -> LanczosState:
    return _step(lambda _: product, state, mode)


def _step(matvec: Any, state: LanczosState, mode: str) -> LanczosState:
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
        row = jnp.where(alive, current, basis[jnp.minimum(j, basis.shape[0] - 1)])
        basis = basis.at[j].set(row, mode="drop")
    residual = _reorthogonalize(residual, basis, j, mode)
    norm = jnp.linalg.norm(residual)
    diagonals = state.diagonal.at[j].add(jnp.where(alive, diagonal, 0), mode="drop")
    # What is left below the rounding of the products is no direction: the subspace is invariant.
    eps = jnp.finfo(current.dtype).eps
    scale = jnp.max(jnp.abs(diagonals)) + jnp.max(state.off_diagonal)
    goes_on = alive & (norm > 16 * eps * scale) & (state.num_valid + 1 < current.size)
    following = jnp.where(goes_on, residual / jnp.where(goes_on, norm, 1), 0)
    norm = jnp.where(goes_on, norm, 0)
    off_diagonals = state.off_diagonal.at[j].add(norm, mode="drop")
    if mode == "selective" and basis is not None:
        lock = partial(_lock, basis, diagonals, off_diagonals)
        basis = jax.lax.cond(j == basis.shape[0] - 1, lock, lambda: basis)
    return LanczosState(
        previous=jnp.where(room, current, state.previous),
        current=jnp.where(room, following, current),
        diagonal=diagonals,
        off_diagonal=off_diagonals,
        basis=basis,
        step=j + room,
        num_valid=state.num_valid + alive,
        failed_step=jnp.where(room & ~finite & (state.failed_step < 0), j, state.failed_step),
    )


def _reorthogonalize(residual, basis, step, mode):
    if mode == "none":
        return residual

    def twice():
        once = _project_off(residual, basis)
        # A second pass has nothing to remove unless the first cancelled digits (Daniel, Gragg,
        # Kaufman, Stewart 1976), and the passes are what reorthogonalisation costs.
        cancelled = jnp.linalg.norm(once) < 0.7 * jnp.linalg.norm(residual)
        return jax.lax.cond(cancelled, lambda: _project_off(once, basis), lambda: once)

    if mode == "full":
        return twice()
    locked = basis[:NUM_LOCKED]
    return jax.lax.cond(step < basis.shape[0], twice, lambda: _project_off(residual, locked))


def _lock(basis, diagonals, off_diagonals):
    """Replace the basis by its converged Ritz vectors, the best converged first, and zeros."""
    size = basis.shape[0]
    alpha, beta = diagonals[:size], off_diagonals[:size]
    tridiagonal = jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    errors = jnp.abs(beta[-1] * vectors[-1])
    order = jnp.argsort(errors)
    # √eps is where a Ritz vector starts to come back into the recurrence (Parlett, Scott 1979).
    limit = jnp.finfo(basis.dtype).eps ** 0.5 * jnp.max(jnp.abs(values))
    chosen = jnp.where(errors[order] <= limit, vectors[:, order], 0)
    return dot(chosen.T, basis)


def _project_off(vector: Float[Array, "D"], rows: Float[Array, "k D"]) -> Float[Array, "D"]:
    return vector - dot(dot(rows, vector), rows)


def _check_start(start_vector: Any) -> Array:
    start_vector = jnp.asarray(start_vector)
    if start_vector.ndim != 1 or start_vector.size == 0:
        raise ValueError(f"start_vector must be a vector [D], got shape {start_vector.shape}")
    if not jnp.issubdtype(start_vector.dtype, jnp.floating):
        raise TypeError(f"start_vector must be real floating, got dtype {start_vector.dtype}")
    if not is_finite(start_vector):
        raise ValueError("start_vector must be finite, got NaN or infinity")
    if is_concrete(start_vector) and not np.any(start_vector):
        raise ValueError("start_vector must not be zero")
    return start_vector
