"""The recurrence from start to end, in one call or in several."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit._core import sharding
from jaxlimit._core.checks import (
    as_array,
    check_choice,
    check_count,
    check_type,
    is_concrete,
    is_finite,
)
from jaxlimit._core.operator import Operator, prepare, takes_operator
from jaxlimit._core.scale import norm, wide_type
from jaxlimit._core.sharding import takes_mesh
from jaxlimit.lanczos import _basis
from jaxlimit.lanczos._basis import STORES
from jaxlimit.lanczos.state import LanczosState, Tridiagonalization
from jaxlimit.lanczos.step import step
from jaxlimit.lanczos.storage import REORTHOGONALIZE, check_basis, num_rows


@takes_operator
def tridiagonalize(
    matvec: Any,
    start_vector: Float[Array, "D"],
    *,
    num_steps: int,
    reorthogonalize: str = "full",
    keep_basis: bool | None = None,
    store: str = "device",
    mesh: Mesh | None = None,
) -> Tridiagonalization:
    """Run Lanczos from a start vector.

    β_j q_{j+1} = H q_j - α_j q_j - β_{j-1} q_{j-1}. Costs `num_steps` products. "full" adds
    2·num_steps²·D multiply-adds and a basis of num_steps·D numbers; "selective" adds
    2·48²·D + 48·num_steps·D multiply-adds and a basis of 72·D numbers. Twice the multiply-adds
    where a step cancels digits.

    Args:
        matvec: H, symmetric: an `Operator` or `Array[D] -> Array[D]`.
        start_vector: q₁ before normalisation, real floating, not zero.
        num_steps: m; more than D is clamped to D.
        reorthogonalize: "full" keeps the basis orthonormal to working precision, so no
            eigenvalue is found twice; "none" stores no basis and finds converged eigenvalues again
            (ghosts), which leaves quadrature valid (Greenbaum 1989) but costs depth; "selective"
            reorthogonalises the first 48 steps fully and all later ones against the Ritz vectors
            that have converged by then, the outliers, whose ghosts are the first to come.
        keep_basis: whether the result has the basis. "full" always has it, "selective" never;
            "none" has it if this is True.
        store: where the basis is kept: "device", as it is; "bfloat16", on the device in half the
            memory; "pinned_host", in the host's memory, streamed through the device block by
            block. The last two, like "selective", have no reverse-mode derivative; the last does
            not work under `vmap`.
        mesh: devices that each keep a part of every vector, split along D over the first axis of
            a `jax.sharding.Mesh`; a basis in the result may have zeros past its D columns.

    Returns:
        A `Tridiagonalization`; an invariant subspace ends it early: see `num_valid`.

    Raises:
        TypeError: if `start_vector` is not real floating, `num_steps` is no static int,
            `keep_basis` is neither Boolean nor None, or `mesh` is no `jax.sharding.Mesh`.
        ValueError: if `start_vector` is zero, not finite or no vector, `num_steps` < 1,
            `reorthogonalize` or `store` is unknown, `keep_basis` does not suit
            `reorthogonalize`, or `matvec` returns another shape.
        MemoryError: if the basis is larger than the device's memory; says what takes less.

    >>> import jax.numpy as jnp
    >>> result = tridiagonalize(lambda v: jnp.array([1.0, 3.0]) * v, jnp.ones(2), num_steps=2)
    >>> result.diagonal.round(3), result.off_diagonal.round(3)
    (Array([2., 2.], dtype=float32), Array([1.], dtype=float32))

    Lanczos (1950); Paige (1972) for the order of operations; Parlett, Scott (1979) for selective
    orthogonalisation; Parlett (1998), chapter 13.
    """
    settings = {"reorthogonalize": reorthogonalize, "keep_basis": keep_basis}
    state = start(start_vector, num_steps=num_steps, store=store, mesh=mesh, **settings)
    num_steps = state.diagonal.shape[0]
    operator = prepare(matvec, jnp.size(start_vector), state.current.dtype, mesh)
    return finish(extend(operator, state, num_steps=num_steps))


@takes_mesh
def start(
    start_vector: Float[Array, "D"],
    *,
    num_steps: int,
    reorthogonalize: str = "full",
    keep_basis: bool | None = None,
    store: str = "device",
    mesh: Mesh | None = None,
) -> LanczosState:
    """Begin a recurrence with room for `num_steps` steps.

    Args:
        start_vector: see `tridiagonalize`.
        num_steps: the greatest depth that `extend` may reach; clamped to D.
        reorthogonalize: see `tridiagonalize`.
        keep_basis: see `tridiagonalize`.
        store: see `tridiagonalize`; `extend` finds it in the state.
        mesh: see `tridiagonalize`.

    Returns:
        The state before the first step.

    Raises:
        TypeError: as `tridiagonalize`.
        ValueError: as `tridiagonalize`.
        MemoryError: as `tridiagonalize`.

    >>> import jax.numpy as jnp
    >>> state = start(jnp.ones(3), num_steps=2, reorthogonalize="none")
    >>> finish(extend(lambda v: 2 * v, state, num_steps=1)).num_valid
    Array(1, dtype=int32)
    """
    check_choice("reorthogonalize", reorthogonalize, REORTHOGONALIZE)
    check_choice("store", store, STORES)
    start_vector = _check_start(start_vector)
    (dim,) = start_vector.shape
    num_steps = min(check_count("num_steps", num_steps), dim)
    rows = num_rows(num_steps, reorthogonalize)
    if not isinstance(keep_basis, bool | None):
        raise TypeError(f"keep_basis must be True, False or None, got {keep_basis!r}")
    refused = {"full": False, "selective": True}.get(reorthogonalize)
    if keep_basis is not None and keep_basis == refused:
        raise ValueError(
            f"keep_basis must not be {keep_basis} where reorthogonalize is {reorthogonalize!r}"
        )
    rows = num_steps if keep_basis else rows
    dtype = start_vector.dtype
    check_basis(rows, sharding.shard_size(dim, mesh), dtype, store)
    size = norm(start_vector)
    current = (start_vector / jnp.where(size > 0, size, 1)).astype(dtype)
    if mesh is not None:
        current = sharding.shard_vector(current, mesh)
    state = LanczosState(
        previous=sharding.zeros(current.shape, dtype, mesh),
        current=current,
        diagonal=jnp.zeros(num_steps, wide_type(dtype)),
        off_diagonal=jnp.zeros(num_steps, wide_type(dtype)),
        basis=_basis.allocate(rows, current, store, mesh) if rows else None,
        step=jnp.int32(0),
        num_valid=jnp.int32(0),
        failed_step=jnp.int32(-1),
        dim=jnp.int32(dim),
        reorthogonalize=reorthogonalize,
        store=store,
    )
    if mesh is None:
        return state
    long = {name: getattr(state, name) for name in ("previous", "current", "basis")}
    short = sharding.replicate(replace(state, **dict.fromkeys(long)), mesh)
    return replace(short, **long)


def extend(
    matvec: Any, state: LanczosState, *, num_steps: int, reorthogonalize: str | None = None
) -> LanczosState:
    """Advance a recurrence by `num_steps` steps, in one `scan`.

    Args:
        matvec: the same operator as before; one that loops over data on the host
            (`curvature.hessian_matvec_over`) is called eagerly, step by step.
        state: from `start` or an earlier `extend`. Steps past its room change nothing.
        num_steps: steps to take now.
        reorthogonalize: None, or the mode of the state.

    Returns:
        The state after them; the same bits however the steps are divided among calls.

    Raises:
        ValueError: if `num_steps` < 1, or `reorthogonalize` is not that of the state.

    >>> import jax.numpy as jnp
    >>> state = start(jnp.ones(3), num_steps=3)
    >>> for _ in range(3):
    ...     state = extend(lambda v: jnp.arange(3.0) * v, state, num_steps=1)
    >>> state.diagonal.round(3)
    Array([1., 1., 1.], dtype=float32)
    """
    num_steps = check_count("num_steps", num_steps)
    check_mode(state, reorthogonalize)
    size, dtype = state.current.size, state.current.dtype
    dim = int(state.dim) if is_concrete(state.dim) else None
    if dim is None and not isinstance(matvec, Operator):
        dim = size
    operator = prepare(matvec, dim, dtype).pad(size)
    if not operator.traceable:
        for _ in range(num_steps):
            state = _advance(operator(state.current), state)
        return state
    with sharding.on(operator.mesh or sharding.mesh_of(state.current)):
        return _extend(operator, state, num_steps)


def check_mode(state: LanczosState, reorthogonalize: str | None) -> None:
    """Raise unless this is a state, and `reorthogonalize` is None or its own mode."""
    check_type("state", state, LanczosState)
    if reorthogonalize not in (None, state.reorthogonalize):
        raise ValueError(
            f"reorthogonalize must be that of the state, {state.reorthogonalize!r}, "
            f"got {reorthogonalize!r}"
        )


def finish(state: LanczosState) -> Tridiagonalization:
    """Return the result so far; the state can still be extended.

    Args:
        state: from `start` or `extend`.

    Returns:
        A `Tridiagonalization` as long as the state's room: entries past `num_valid` are 0.

    Raises:
        TypeError: if `state` is no `LanczosState`.

    >>> import jax.numpy as jnp
    >>> state = extend(lambda v: 2 * v, start(jnp.ones(3), num_steps=2), num_steps=2)
    >>> finish(state).num_valid  # all of space is an eigenvector
    Array(1, dtype=int32)
    """
    check_type("state", state, LanczosState)
    last = jnp.maximum(state.num_valid - 1, 0)
    basis = None if state.reorthogonalize == "selective" else state.basis
    return Tridiagonalization(
        diagonal=state.diagonal,
        off_diagonal=state.off_diagonal[:-1],
        basis=None if basis is None else _basis.read(basis),
        residual_norm=state.off_diagonal[last],
        num_valid=state.num_valid,
        failed_step=state.failed_step,
    )


@partial(jax.jit, static_argnums=2)
def _extend(matvec: Operator, state: LanczosState, num_steps: int) -> LanczosState:
    def carry_on(state, _):
        return step(matvec, state), None

    return jax.lax.scan(carry_on, state, length=num_steps)[0]


@jax.jit
def _advance(product: Array, state: LanczosState) -> LanczosState:
    return step(lambda _: product, state)


def _check_start(start_vector: Any) -> Array:
    start_vector = as_array("start_vector", start_vector)
    if start_vector.ndim != 1 or start_vector.size == 0:
        raise ValueError(f"start_vector must be a vector [D], got shape {start_vector.shape}")
    if not jnp.issubdtype(start_vector.dtype, jnp.floating):
        raise TypeError(f"start_vector must be real floating, got dtype {start_vector.dtype}")
    if not is_finite(start_vector):
        raise ValueError("start_vector must be finite, got NaN or infinity")
    if is_concrete(start_vector) and not np.any(start_vector):
        raise ValueError("start_vector must not be zero")
    return start_vector
