"""The Lanczos recurrence: a symmetric operator seen from one vector, as a tridiagonal matrix.

The recurrence is a pytree, `LanczosState`, that `start` makes, `extend` carries on by as many steps
as one likes, and `finish` reads out; `tridiagonalize` is the three in a row. Whatever goes wrong
numerically (an invariant subspace, a product that is not finite) ends the recurrence where it
stands and is told in the result; it never spreads NaN.
"""

import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from jaxlimit import _basis, _mesh, _two_pass
from jaxlimit._basis import STORES
from jaxlimit._checks import check_choice, check_count, is_concrete, is_finite
from jaxlimit._eigenpairs import Eigenpairs, extremal_eigenpairs  # noqa: F401 (public here)
from jaxlimit._host import HostMatvec
from jaxlimit._matvec import dot, prepare
from jaxlimit._memory import check_memory
from jaxlimit._mesh import takes_mesh

REORTHOGONALIZE = ("full", "selective", "none")
WARM_UP = 48  # steps that "selective" reorthogonalises fully
NUM_LOCKED = 24  # converged Ritz vectors that it goes on with, at most
FORMAT_VERSION = 1


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


class RitzPairs(NamedTuple):
    """Approximate eigenpairs, and how good each is.

    Attributes:
        values: vᵀHv, the most extreme first.
        vectors: row i, of norm 1, belongs to `values[i]`.
        residual_norms: ‖Hv - λv‖; an eigenvalue of H lies this near.
    """

    values: Float[Array, "k"]
    vectors: Float[Array, "k D"]
    residual_norms: Float[Array, "k"]


class LanczosState(NamedTuple):
    """Everything the recurrence needs to go on: two vectors, T so far, and the basis if kept.

    Attributes:
        previous: q_{j-1}.
        current: q_j, zero once the recurrence has ended.
        diagonal: α, allocated for the greatest depth.
        off_diagonal: β, including the last, which couples to `current`.
        basis: the Lanczos vectors, allocated for the greatest depth; if "selective" those of the
            warm-up, and after it, in 24 rows of their own, the converged Ritz vectors; None if not
            kept.
        step: steps asked for so far.
        num_valid: steps that were possible.
        failed_step: as in `Tridiagonalization`.
        dim: D; on a mesh the vectors are padded with zeros to a size that divides.
    """

    previous: Float[Array, "D"]
    current: Float[Array, "D"]
    diagonal: Float[Array, "m"]
    off_diagonal: Float[Array, "m"]
    basis: Float[Array, "b D"] | None
    step: Int[Array, ""]
    num_valid: Int[Array, ""]
    failed_step: Int[Array, ""]
    dim: Int[Array, ""]


@takes_mesh
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

    β_j q_{j+1} = H q_j - α_j q_j - β_{j-1} q_{j-1}. Costs `num_steps` products; reorthogonalised
    fully, also 2·num_steps²·D multiply-adds and a basis of num_steps·D numbers; selectively,
    2·48²·D + 48·num_steps·D multiply-adds and a basis of 72·D. Twice that where steps cancel.

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
        store: where the basis is kept: "device", as it is; "bfloat16", on the device in half the
            memory; "pinned_host", in the host's memory, streamed through the device block by
            block. The last two, like "selective", are not differentiable in reverse, the last not
            under `vmap`.
        mesh: devices that each keep a part of every vector, split along D over the first axis of
            a `jax.sharding.Mesh`; a basis in the result may have zeros past its D columns.

    Returns:
        A `Tridiagonalization`; an invariant subspace ends it early, see `num_valid`.

    Raises:
        TypeError: if `start_vector` is not a real floating vector.
        ValueError: if `start_vector` is zero, not finite or no vector, `num_steps` < 1,
            `reorthogonalize` or `store` is unknown, or `matvec` returns another shape.
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
    matvec, dim, _ = prepare(matvec, jnp.size(start_vector), state.current.dtype)
    matvec = _mesh.pad_operator(matvec, dim, state.current.size)
    state = extend(matvec, state, num_steps=num_steps, reorthogonalize=reorthogonalize)
    return finish(state)


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
        start_vector: as for `tridiagonalize`.
        num_steps: the greatest depth that `extend` may reach; clamped to D.
        reorthogonalize: as for `tridiagonalize`.
        keep_basis: as for `tridiagonalize`.
        store: as for `tridiagonalize`; `extend` finds it in the state.
        mesh: as for `tridiagonalize`.

    Returns:
        The state before the first step.

    Raises:
        TypeError: as `tridiagonalize`.
        ValueError: as `tridiagonalize`.
        MemoryError: as `tridiagonalize`.

    >>> import jax.numpy as jnp
    >>> state = start(jnp.ones(3), num_steps=2, reorthogonalize="none")
    >>> finish(extend(lambda v: 2 * v, state, num_steps=1, reorthogonalize="none")).num_valid
    Array(1, dtype=int32)
    """
    check_choice("reorthogonalize", reorthogonalize, REORTHOGONALIZE)
    check_choice("store", store, STORES)
    if mesh is not None and store != "device":
        raise ValueError(f"store must be 'device' on a mesh, got {store!r}")
    start_vector = _check_start(start_vector)
    (dim,) = start_vector.shape
    num_steps = min(check_count("num_steps", num_steps), dim)
    rows = num_rows(num_steps, reorthogonalize)
    if keep_basis is not None and keep_basis != (rows > 0) and reorthogonalize != "none":
        raise ValueError(
            f"keep_basis must not be {keep_basis} where reorthogonalize is {reorthogonalize!r}"
        )
    rows = num_steps if keep_basis else rows
    dtype = start_vector.dtype
    check_basis(rows, _mesh.share_of(dim, mesh), dtype, store)
    norm = jnp.linalg.norm(start_vector)
    current = start_vector / jnp.where(norm > 0, norm, 1)
    if mesh is not None:
        current = _mesh.split_vector(current, mesh)
    state = LanczosState(
        previous=_mesh.zeros(current.shape, dtype, mesh),
        current=current,
        diagonal=jnp.zeros(num_steps, dtype),
        off_diagonal=jnp.zeros(num_steps, dtype),
        basis=_allocate(rows, current, store, mesh) if rows else None,
        step=jnp.int32(0),
        num_valid=jnp.int32(0),
        failed_step=jnp.int32(-1),
        dim=jnp.int32(dim),
    )
    if mesh is None:
        return state
    long = {name: getattr(state, name) for name in ("previous", "current", "basis")}
    short = _mesh.place(state._replace(**dict.fromkeys(long)), _mesh.whole(mesh))
    return short._replace(**long)


def _allocate(rows: int, like: Array, store: str, mesh: Mesh | None) -> Array:
    if mesh is None:
        return _basis.allocate(rows, like, store)
    return _mesh.zeros((rows, like.size), like.dtype, mesh)


def num_rows(num_steps: int, reorthogonalize: str) -> int:
    """Return how many vectors a recurrence of `num_steps` steps stores besides its own two."""
    selective = min(WARM_UP, num_steps) + NUM_LOCKED
    return {"full": num_steps, "selective": selective, "none": 0}[reorthogonalize]


def check_basis(rows: int, dim: int, dtype: Any, store: str = "device") -> None:
    """Raise `MemoryError` if `rows` vectors, kept as `store` says, are more than the device holds.

    Those in the host's memory pass.
    """
    if store == "pinned_host":
        return
    check_memory(
        f"a Lanczos basis of {rows} vectors of {dim} entries",
        rows * dim * jnp.dtype(jnp.bfloat16 if store == "bfloat16" else dtype).itemsize,
        f"take fewer steps, reorthogonalize='selective' ({WARM_UP + NUM_LOCKED} vectors a probe) "
        "or 'none' (no basis), or probes one after the other",
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
    size, dtype = state.current.size, state.current.dtype
    if is_concrete(state.dim) and size != state.dim:
        matvec, dim, _ = prepare(matvec, int(state.dim), dtype)
        matvec = _mesh.pad_operator(matvec, dim, size)
    matvec, _, _ = prepare(matvec, size, dtype)
    if isinstance(matvec, HostMatvec):
        for _ in range(num_steps):
            state = _advance(matvec(state.current), state, reorthogonalize)
        return state
    with _mesh.on(_mesh.mesh_of(state.current)):
        return _extend(matvec, state, num_steps, reorthogonalize)


def two_pass_eigenpairs(
    matvec: Any,
    start_vector: Float[Array, "D"],
    *,
    num_steps: int,
    num_pairs: int,
    which: str = "largest",
) -> RitzPairs:
    """Find extreme eigenpairs where no basis fits: Lanczos once for T, once more for the vectors.

    v = Σ sⱼ qⱼ with T s = θ s, the qⱼ made a second time and added up as they come. Costs
    2·num_steps + k products and memory of k + 5 vectors; `extremal_eigenpairs` takes about half the
    products where a basis fits, and finds multiple eigenvalues, which this cannot.

    Args:
        matvec: H, as for `tridiagonalize`.
        start_vector: as for `tridiagonalize`.
        num_steps: m, at most D.
        num_pairs: k ≤ m. Eigenvalues nearer than √ε‖H‖ to each other count as one, since without
            reorthogonalisation each is found several times; fewer pairs come if T has no more.
        which: "largest", "smallest" or "magnitude".

    Returns:
        `RitzPairs`, converged or not: see their residual norms.

    Raises:
        TypeError: as `tridiagonalize`.
        ValueError: as `tridiagonalize`, and if `which` is unknown or `num_pairs` > m.
        FloatingPointError: if a product was not finite; names the step.

    >>> import jax.numpy as jnp
    >>> matvec = lambda v: jnp.array([5.0, 1.0, 0.0, -2.0]) * v
    >>> two_pass_eigenpairs(matvec, jnp.ones(4), num_steps=4, num_pairs=2).values.round(3)
    Array([5., 1.], dtype=float32)

    Cullum, Willoughby (1985), chapter 4.
    """
    check_choice("which", which, ("largest", "smallest", "magnitude"))
    state = start(start_vector, num_steps=num_steps, reorthogonalize="none")
    num_pairs, depth = check_count("num_pairs", num_pairs), state.diagonal.size
    if num_pairs > depth:
        raise ValueError(f"num_pairs must be at most num_steps = {depth}, got {num_pairs}")
    first = state.current
    matvec, _, _ = prepare(matvec, first.size, first.dtype)
    state = extend(matvec, state, num_steps=depth, reorthogonalize="none")
    if int(state.failed_step) >= 0:
        raise FloatingPointError(f"matvec returned NaN or infinity at step {state.failed_step}")
    alpha, beta = (x[: int(state.num_valid)] for x in (state.diagonal, state.off_diagonal))
    coefficients = _two_pass.pick_distinct(np.asarray(alpha), np.asarray(beta), num_pairs, which)
    vectors = _two_pass.combine_again(matvec, first, alpha, beta, jnp.asarray(coefficients))
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    values, norms = _two_pass.judge(matvec, vectors)
    return RitzPairs(values, vectors, norms)


def finish(state: LanczosState) -> Tridiagonalization:
    """Read a recurrence out; the state can still be extended."""
    last = jnp.maximum(state.num_valid - 1, 0)
    return Tridiagonalization(
        diagonal=state.diagonal,
        off_diagonal=state.off_diagonal[:-1],
        basis=None if state.basis is None else _basis.read(state.basis),
        residual_norm=state.off_diagonal[last],
        num_valid=state.num_valid,
        failed_step=state.failed_step,
    )


def with_room(
    state: LanczosState, num_steps: int, *, reorthogonalize: str = "full"
) -> LanczosState:
    """Give a recurrence room for `num_steps` steps, so that it can go on beyond its first plan.

    Args:
        state: from `start`, `extend` or `load`, with its own room or less used up.
        num_steps: the new greatest depth, clamped to D; no room is taken away.
        reorthogonalize: as it was for `start`.

    Returns:
        The same recurrence; `extend` takes it to the same bits as if it had begun with this room.

    >>> import jax.numpy as jnp
    >>> state = start(jnp.ones(3), num_steps=1, reorthogonalize="none")
    >>> with_room(state, 2, reorthogonalize="none").diagonal.shape
    (2,)
    """
    room = state.diagonal.shape[0]
    added = max(min(check_count("num_steps", num_steps), state.current.size) - room, 0)
    basis = state.basis
    if basis is not None:
        rows = [num_rows(depth, reorthogonalize) for depth in (room, room + added)]
        # Rows for locked vectors, which come last, hold none before a whole warm-up.
        more = added if reorthogonalize == "none" else rows[1] - rows[0]
        store = "pinned_host" if _basis.is_on_host(basis) else "device"
        check_basis(basis.shape[0] + more, state.current.size, basis.dtype, store)
        basis = _basis.pad(basis, more)
    return state._replace(
        diagonal=jnp.pad(state.diagonal, (0, added)),
        off_diagonal=jnp.pad(state.off_diagonal, (0, added)),
        basis=basis,
    )


def save(path: Any, state: LanczosState) -> None:
    """Write a recurrence as a versioned npz, to go on with another day.

    Raises:
        OSError: if the file cannot be written; one that was there before is kept whole.
    """
    fields: dict[str, Any] = {
        name: np.asarray(value) for name, value in state._asdict().items() if value is not None
    }
    fields["on_host"] = np.asarray(state.basis is not None and _basis.is_on_host(state.basis))
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        np.savez(file, version=FORMAT_VERSION, **fields)
    os.replace(temporary, path)


def load(path: Any) -> LanczosState:
    """Read a recurrence that `save` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no recurrence, or of another version.
    """
    with np.load(path) as file:
        version = file.get("version", "none")
        if int(file.get("version", -1)) != FORMAT_VERSION or "failed_step" not in file:
            raise ValueError(
                f"{path} must be a Lanczos recurrence of format {FORMAT_VERSION}, got {version}"
            )
        fields: dict[str, Any] = {"basis": None} | {
            name: file[name] if name == "basis" else jnp.asarray(file[name])
            for name in file.files
            if name in LanczosState._fields
        }
        if fields["basis"] is not None:
            fields["basis"] = _basis.place(fields["basis"], on_host=bool(file["on_host"]))
    return LanczosState(**fields)


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
