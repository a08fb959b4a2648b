"""Eigenpairs without a basis in memory: one Lanczos run for the values, the same again for vectors.

Without reorthogonalisation the run finds converged eigenvalues again and again (ghosts). Each copy
has an equally good vector (Paige 1980), so one copy of each is taken. A copy that is still forming
may lie anywhere between eigenvalues; its vector has almost no component along the start vector.

A copy grows from rounding alone, so both runs are one and the same program: rounded in other places
the second would form other copies, and the vectors that T describes would not be those it makes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit._core import sharding
from jaxlimit._core.checks import check_choice, check_count, is_concrete
from jaxlimit._core.operator import ALL_FINITE, Operator, dot, prepare, takes_operator
from jaxlimit._core.scale import norm
from jaxlimit.lanczos.pairs import Eigenpairs
from jaxlimit.lanczos.recurrence import start
from jaxlimit.lanczos.state import LanczosState
from jaxlimit.lanczos.step import step


@takes_operator
def two_pass_eigenpairs(
    matvec: Any,
    start_vector: Float[Array, "D"],
    *,
    num_steps: int,
    num_pairs: int,
    which: str = "largest",
    mesh: Mesh | None = None,
) -> Eigenpairs:
    """Find extreme eigenpairs where no basis fits: Lanczos once for T, once more for the vectors.

    v = Σ sⱼ qⱼ with T s = θ s; a second run makes the qⱼ again and sums as it goes. Costs
    2·num_steps + k products and memory of k + 5 vectors. Where a basis fits, `extremal_eigenpairs`
    takes about half the products, and it finds multiple eigenvalues, which this function cannot.
    Eager only: eigenvectors of T are chosen on the host between the runs.

    Args:
        matvec: H; see `tridiagonalize`.
        start_vector: see `tridiagonalize`.
        num_steps: m, at most D.
        num_pairs: k ≤ m. Eigenvalues nearer than √ε‖H‖ to each other count as one, since without
            reorthogonalisation each is found several times; a copy still forming is left out. If T
            has fewer, fewer are returned.
        which: "largest", "smallest" or "magnitude".
        mesh: devices that each keep a part of every vector; see `tridiagonalize`.

    Returns:
        `Eigenpairs`, the most extreme first, their vectors of norm 1. A pair has converged if its
        residual norm is at most ε^(2/3) of the largest eigenvalue of T. `complete` is always False,
        since copies cannot be found.

    Raises:
        TypeError: as `tridiagonalize`, and under `jit`, `vmap` or `scan`.
        ValueError: as `tridiagonalize`, and if `which` is unknown or `num_pairs` > m.
        FloatingPointError: if a product was not finite; names the step.

    >>> import jax.numpy as jnp
    >>> matvec = lambda v: jnp.array([5.0, 1.0, 0.0, -2.0]) * v
    >>> two_pass_eigenpairs(matvec, jnp.ones(4), num_steps=4, num_pairs=2).values.round(3)
    Array([5., 1.], dtype=float32)

    Cullum, Willoughby (1985), chapter 4.
    """
    check_choice("which", which, ("largest", "smallest", "magnitude"))
    first = start(start_vector, num_steps=num_steps, reorthogonalize="none", mesh=mesh)
    num_pairs, depth = check_count("num_pairs", num_pairs), first.diagonal.size
    if num_pairs > depth:
        raise ValueError(f"num_pairs must be at most num_steps = {depth}, got {num_pairs}")
    dtype = first.current.dtype
    operator = prepare(matvec, jnp.size(start_vector), dtype, mesh).pad(first.current.size)
    nothing = np.zeros((depth, num_pairs), dtype)
    state = _run(operator, first, nothing, mesh)[0]  # the sum of nothing is not kept
    if not is_concrete(state):
        raise TypeError(
            "two_pass_eigenpairs chooses eigenvectors on the host and cannot run under jit, vmap "
            "or scan: call it eagerly, or use extremal_eigenpairs"
        )
    if int(state.failed_step) >= 0:
        raise FloatingPointError(f"matvec returned NaN or infinity at step {state.failed_step}")
    num_valid = int(state.num_valid)
    alpha, beta = (np.asarray(x)[:num_valid] for x in (state.diagonal, state.off_diagonal))
    eps = float(jnp.finfo(dtype).eps)
    chosen, largest = _pick_distinct(alpha, beta, num_pairs, which, eps)
    coefficients = nothing.copy()
    coefficients[:num_valid, : chosen.shape[1]] = chosen
    vectors = _run(operator, first, coefficients, mesh)[1][: chosen.shape[1]]
    vectors /= norm(vectors, 1, keepdims=True).astype(dtype)
    values, residual_norms = _judge(operator, vectors)
    tolerance = eps ** (2 / 3) * largest
    return Eigenpairs(
        values=values,
        vectors=vectors,
        residual_norms=residual_norms,
        converged=residual_norms <= tolerance,
        complete=jnp.bool_(False),
        num_products=jnp.int32(2 * depth + len(vectors)),
        failed_product=jnp.int32(ALL_FINITE),
    )


def _pick_distinct(
    diagonal: np.ndarray, off_diagonal: np.ndarray, num_pairs: int, which: str, eps: float
) -> tuple[np.ndarray, float]:
    """Choose eigenvectors of T, columns [m, k], one for each of the most extreme eigenvalues.

    Returns them with the largest magnitude of any eigenvalue of T.
    """
    a, b = diagonal.astype(np.float64), off_diagonal.astype(np.float64)
    values, vectors = np.linalg.eigh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))
    errors = np.abs(b[-1] * vectors[-1])
    largest = np.abs(values).max()
    apart = np.sqrt(eps) * largest
    # Copies grow from rounding; all else owes its place in T to the start vector, of which a random
    # one has about D^-1/2 along every eigenvector.
    forming = (np.abs(vectors[0]) < eps**0.75) & (errors > apart)
    rank = {"largest": -values, "smallest": values, "magnitude": -np.abs(values)}[which]
    chosen: list[int] = []
    for i in sorted(np.flatnonzero(~forming), key=rank.__getitem__):
        copies = [c for c, at in enumerate(chosen) if abs(values[at] - values[i]) <= apart]
        if copies and errors[i] < errors[chosen[copies[0]]]:
            chosen[copies[0]] = int(i)
        elif not copies and len(chosen) < num_pairs:
            chosen.append(int(i))
    return vectors[:, chosen].astype(diagonal.dtype), float(largest)


def _run(
    matvec: Operator, state: LanczosState, coefficients: np.ndarray, mesh: Mesh | None
) -> tuple[LanczosState, Float[Array, "k D"]]:
    """Take a step for each row of coefficients [m, k], and sum the Lanczos vectors times them."""
    current = state.current
    total = sharding.zeros((coefficients.shape[1], current.size), current.dtype, mesh)
    if matvec.traceable:
        with sharding.on(matvec.mesh or sharding.mesh_of(current)):
            return _scan(matvec, state, total, coefficients)
    for row in coefficients:
        state, total = _advance(matvec(state.current), state, total, row)
    return state, total


@jax.jit
def _scan(matvec: Operator, state: LanczosState, total: Array, coefficients: Array) -> tuple:
    def carry_on(carry, row):
        return _advance(matvec(carry[0].current), *carry, row), None

    return jax.lax.scan(carry_on, (state, total), coefficients)[0]


@jax.jit
def _advance(product: Array, state: LanczosState, total: Array, row: Array) -> tuple:
    total = (total + row[:, None] * state.current).astype(total.dtype)
    return step(lambda _: product, state), total


def _judge(matvec: Operator, vectors: Float[Array, "k D"]) -> tuple[Array, Array]:
    """Return vᵀHv and ‖Hv - (vᵀHv) v‖ of each vector; costs one product each."""
    pairs = []
    for i in range(len(vectors)):
        vector = vectors[i]  # arrays of several processes cannot be iterated over
        product = matvec(vector)
        value = dot(vector, product)
        pairs.append((value, norm(product - value * vector)))
    values, norms = zip(*pairs, strict=True)
    return jnp.stack(values), jnp.stack(norms)
