"""Extremal eigenpairs by thick-restart Lanczos, with a search for copies that one start cannot see.

A Krylov space from one vector holds one eigenvector of each eigenvalue, whatever its multiplicity.
So once the wanted pairs have converged, they are kept, and a fresh random vector orthogonal to them
starts another round. Only a round that finds nothing new ends the search.

All vectors are kept orthonormal (each new one is projected twice), and the projected matrix is made
of the coefficients of that projection. It is always V H Vᵀ itself, so restarts, breakdowns and
fresh vectors need no special treatment.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxlimit._core import scale, sharding
from jaxlimit._core.checks import check_choice, check_count, check_key, check_real, is_concrete
from jaxlimit._core.memory import check_memory
from jaxlimit._core.operator import (
    ALL_FINITE,
    Operator,
    check_factorable,
    check_products,
    dot,
    earlier_failure,
    first_failure,
    prepare,
    takes_operator,
)
from jaxlimit._core.projection import project_off
from jaxlimit.lanczos.pairs import Eigenpairs

WHICH = ("largest", "smallest", "both", "magnitude")

# The probability that a round misses an eigenvector that it should have found.
MISS_PROBABILITY = 1e-4


@takes_operator
def extremal_eigenpairs(
    matvec: Any,
    key: PRNGKeyArray,
    *,
    dim: int | None = None,
    num_pairs: int,
    which: str = "largest",
    basis_size: int | None = None,
    tolerance: float | None = None,
    max_products: int | None = None,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> Eigenpairs:
    """Find the eigenpairs at the ends of a symmetric operator's spectrum.

    Thick-restart Lanczos: a restart keeps the best half of the Ritz pairs of a basis of m vectors
    and fills the basis up again, until the wanted pairs have ‖Hv - λv‖ ≤ tolerance · ‖H‖. Multiple
    eigenvalues are found with all their copies, one round for each copy. Costs m products for the
    first basis, about (m - k)/2 for each restart and k at the end; memory of 2 m D numbers; 8 m D
    operations a product to reorthogonalise.

    Args:
        matvec: H, symmetric: an `Operator` or `Array[D] -> Array[D]`.
        key: random key of the start vectors.
        dim: D; an `Operator` knows it.
        num_pairs: k ≤ D.
        which: "largest" (values descend), "smallest" (ascend), "magnitude" (|values| descend), or
            "both": the ⌈k/2⌉ largest and ⌊k/2⌋ smallest (values descend).
        basis_size: m > k, or D; clamped to D. Default k + max(k, 20).
        tolerance: relative to ‖H‖, which the products bound from below; default ε^(2/3) of
            `dtype`. The error of a value is about (tolerance · ‖H‖)² over its gap to the others.
        max_products: the most products to make; default 50 m.
        dtype: floating type of the vectors; by default that of `matvec`, or float32.
        mesh: devices that each keep a part of every vector; see `tridiagonalize`.

    Returns:
        `Eigenpairs`. Pairs that have not converged by `max_products` are returned as they are, with
        `converged` False. Nothing is ever NaN: where a product was not finite under `jit`, values
        are the last ones known, residual norms infinite, and `failed_product` is set.

    Raises:
        TypeError: if a count is no static int, `dtype` is not real floating, narrower than float32
            or not that of `matvec`, `mesh` is no `jax.sharding.Mesh`, or `matvec` loops over data
            on the host.
        ValueError: if a count is out of its range, `which` is unknown, `tolerance` is not positive,
            `max_products` < m + k, or `matvec` does not map [D] to [D].
        FloatingPointError: if a product was not finite; names which.
        MemoryError: if the bases are larger than the device's memory.

    >>> import jax, jax.numpy as jnp
    >>> eigenvalues = jnp.array([1.0, 5.0, 5.0, 2.0, -3.0, 0.0])
    >>> pairs = extremal_eigenpairs(
    ...     lambda v: eigenvalues * v, jax.random.key(0), dim=6, num_pairs=3)
    >>> pairs.values.round(3)
    Array([5., 5., 2.], dtype=float32)

    Wu, Simon (2000) for the restarts; Kuczyński, Woźniakowski (1992), section 4, for when a round
    may be trusted to have missed nothing. Their bound is for Lanczos without restarts; here it is
    a guide.
    """
    check_key("key", key)
    operator = prepare(matvec, dim, dtype, mesh, instead="use lanczos.two_pass_eigenpairs")
    dim, dtype = operator.dim, operator.dtype
    check_factorable(dtype)
    check_choice("which", which, WHICH)
    num_pairs = check_count("num_pairs", num_pairs)
    if num_pairs > dim:
        raise ValueError(f"num_pairs must be at most dim = {dim}, got {num_pairs}")
    basis_size = _check_basis_size(basis_size, num_pairs, dim)
    share = sharding.shard_size(dim, mesh)
    check_memory(
        f"two bases of {basis_size} vectors of {share} entries",
        2 * basis_size * share * dtype.itemsize,
        "lower num_pairs or basis_size",
    )
    max_products = 50 * basis_size if max_products is None else max_products
    check_count("max_products", max_products, basis_size + num_pairs)
    if tolerance is None:
        tolerance = float(jnp.finfo(dtype).eps) ** (2 / 3)
    else:
        check_real("tolerance", tolerance)
        if is_concrete(tolerance) and not float(tolerance) > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}")
    settings = _Settings(dim, num_pairs, which, basis_size, dtype, mesh)
    limits = jnp.asarray(tolerance, dtype), jnp.int32(min(max_products, jnp.iinfo(jnp.int32).max))
    key, limits = sharding.replicate((key, limits), mesh)
    pairs = _extremal_eigenpairs(operator, key, *limits, settings)
    check_products(pairs.failed_product)
    return pairs


def _check_basis_size(basis_size: int | None, num_pairs: int, dim: int) -> int:
    if basis_size is None:
        basis_size = num_pairs + max(num_pairs, 20)
    basis_size = min(check_count("basis_size", basis_size), dim)
    if basis_size <= num_pairs and basis_size < dim:
        raise ValueError(f"basis_size must exceed num_pairs = {num_pairs}, got {basis_size}")
    return basis_size


class _Settings(NamedTuple):
    dim: int
    num_pairs: int
    which: str
    basis_size: int
    dtype: Any
    mesh: Mesh | None


class _State(NamedTuple):
    basis: Float[Array, "m D"]  # rows from `filled` on are 0
    projected: Float[Array, "m m"]  # V H Vᵀ
    following: Float[Array, "D"]  # the next row
    coupling: Float[Array, ""]  # ‖what H takes out of the basis‖, along `following`
    filled: Int[Array, ""]
    known: Float[Array, "k"]  # wanted values (or magnitudes) when the last round began
    since_fresh: Int[Array, ""]
    scale: Float[Array, ""]  # max ‖Hv‖ seen: a lower bound on ‖H‖
    num_products: Int[Array, ""]
    failed: Int[Array, ""]
    complete: Bool[Array, ""]


@partial(jax.jit, static_argnums=4)
def _extremal_eigenpairs(
    matvec: Operator, key: PRNGKeyArray, tolerance: Array, max_products: Array, settings: _Settings
) -> Eigenpairs:
    m, k = settings.basis_size, settings.num_pairs

    def affordable(state):
        needed = state.num_products + (m - state.filled) + k
        return ~state.complete & (state.failed == ALL_FINITE) & (needed <= max_products)

    def cycle(state):
        room = lambda s: (s.filled < m) & (s.failed == ALL_FINITE)  # noqa: E731
        state = jax.lax.while_loop(room, lambda s: _expand(matvec, key, settings, s), state)
        return _restart(key, tolerance, settings, state)

    state = jax.lax.while_loop(affordable, cycle, _initial(key, settings))
    pairs = _read_out(matvec, tolerance, settings, state)
    if settings.mesh is None:
        return pairs
    short = sharding.replicate(pairs._replace(vectors=None), settings.mesh)
    return short._replace(vectors=sharding.place(pairs.vectors, sharding.sharded(settings.mesh, 1)))


def _initial(key: PRNGKeyArray, settings: _Settings) -> _State:
    m, dtype = settings.basis_size, settings.dtype
    size = sharding.padded_size(settings.dim, settings.mesh)
    basis = sharding.zeros((m, size), dtype, settings.mesh)
    return _State(
        basis=basis,
        projected=jnp.zeros((m, m), dtype),
        following=_fresh_vector(key, basis, settings),
        coupling=jnp.zeros((), dtype),
        filled=jnp.int32(0),
        known=jnp.full(settings.num_pairs, jnp.inf, dtype),
        since_fresh=jnp.int32(0),
        scale=jnp.zeros((), dtype),
        num_products=jnp.int32(0),
        failed=jnp.int32(ALL_FINITE),
        complete=jnp.bool_(False),
    )


def _expand(matvec: Operator, key: PRNGKeyArray, settings: _Settings, state: _State) -> _State:
    """Append `following` to the basis and find the next one."""
    j, vector = state.filled, state.following
    product, size, finite = _finite_product(matvec, vector)
    basis = state.basis.at[j].set(jnp.where(finite, vector, 0))
    residual, coefficients = _orthogonalize(product, basis)
    projected = state.projected.at[j].set(coefficients).at[:, j].set(coefficients)
    largest = jnp.maximum(state.scale, size)
    norm = scale.norm(residual)
    # A residual below the rounding of the products has no direction: the space is invariant.
    invariant = (norm <= 16 * jnp.finfo(norm.dtype).eps * largest) | (j + 1 >= settings.dim)
    following = jax.lax.cond(
        invariant,
        lambda: _fresh_vector(jax.random.fold_in(key, 2 * state.num_products + 1), basis, settings),
        lambda: residual / norm,
    )
    return state._replace(
        basis=basis,
        projected=projected,
        following=following,
        coupling=jnp.where(invariant, 0, norm),
        filled=j + 1,
        since_fresh=jnp.where(invariant, 0, state.since_fresh + 1),
        scale=largest,
        num_products=state.num_products + 1,
        failed=jnp.where(finite, ALL_FINITE, state.num_products),
    )


def _restart(key: PRNGKeyArray, tolerance: Array, settings: _Settings, state: _State) -> _State:
    """Rotate the basis to its Ritz vectors, best first, test them, and keep the best half."""
    m, k = settings.basis_size, settings.num_pairs
    values, vectors = scale.eigh(state.projected)
    order = _best_first(values, settings.which)
    values, vectors = values[order], vectors[:, order]
    residuals = state.coupling * jnp.abs(vectors[-1])
    # Half the tolerance, since a pair keeps what it lost of its residual when a round ends.
    settled = jnp.all(residuals[:k] <= tolerance * state.scale / 2)
    # By magnitude, λ and -λ may change places from round to round, which is nothing new.
    ranks = jnp.abs(values[:k]) if settings.which == "magnitude" else values[:k]
    known = settled & jnp.all(jnp.abs(ranks - state.known) <= tolerance * state.scale)
    absent = _nothing_better(values, residuals, tolerance * state.scale, settings, state)
    starts_afresh = settled & ~known
    kept = jnp.where(starts_afresh, jnp.int32(k), k + (m - k) // 2)
    keeps = jnp.arange(m) < kept
    basis = dot(vectors.T * keeps[:, None], state.basis)
    following = jax.lax.cond(
        starts_afresh,
        lambda: _fresh_vector(jax.random.fold_in(key, 2 * state.num_products), basis, settings),
        lambda: state.following,
    )
    return state._replace(
        basis=basis,
        projected=jnp.diag(jnp.where(keeps, values, 0)),
        following=following,
        coupling=jnp.where(starts_afresh, 0, state.coupling),
        filled=kept,
        known=jnp.where(starts_afresh, ranks, state.known),
        since_fresh=jnp.where(starts_afresh, 0, state.since_fresh),
        complete=(known & absent) | (m == settings.dim),
    )


def _nothing_better(
    values: Array, residuals: Array, tolerance: Array, settings: _Settings, state: _State
) -> Bool[Array, ""]:
    """Whether no eigenvalue beyond the wanted ones is left outside their eigenvectors.

    Either the best pair of the rest has converged, or after this many steps from a random vector
    its Ritz value is so far from the wanted ones that Kuczyński and Woźniakowski's bound makes an
    eigenvalue out there unlikely.
    """
    k = settings.num_pairs
    wanted, rest = values[:k], values[k:]
    if rest.size == 0:
        return jnp.bool_(True)
    ends = {
        "largest": [(1, wanted)],
        "smallest": [(-1, wanted)],
        "both": [(1, wanted[::2]), (-1, wanted[1::2])],
        "magnitude": [(1, jnp.abs(wanted)), (-1, -jnp.abs(wanted))],
    }[settings.which]
    log_odds = jnp.log(1.648 * settings.dim**0.5 / MISS_PROBABILITY)
    absent = jnp.bool_(True)
    for sign, bounds in ends:
        if bounds.size == 0:
            continue
        bound, others = jnp.min(sign * bounds), sign * rest
        best = jnp.argmax(others)
        gap = (bound - others[best]) / jnp.maximum(bound - jnp.min(others), tolerance)
        unlikely = jnp.sqrt(jnp.maximum(gap, 0)) * (2 * state.since_fresh - 1) >= log_odds
        absent &= unlikely | (residuals[k:][best] <= tolerance)
    return absent


def _read_out(matvec: Operator, tolerance: Array, settings: _Settings, state: _State) -> Eigenpairs:
    vectors = state.basis[: settings.num_pairs]
    norms = scale.norm(vectors, 1, keepdims=True)
    vectors = vectors / jnp.where(norms > 0, norms, 1)

    def measure(vector):
        product, _, finite = _finite_product(matvec, vector)
        value = dot(vector, product)
        residual = scale.norm(product - value * vector)
        return value, jnp.where(finite, residual, jnp.inf), finite

    values, residual_norms, finite = jax.lax.map(measure, vectors)
    late = first_failure(finite)
    failed = earlier_failure(state.failed, late, state.num_products)
    values = jnp.where(failed == ALL_FINITE, values, jnp.diag(state.projected)[: len(values)])
    residual_norms = jnp.where(failed == ALL_FINITE, residual_norms, jnp.inf)
    final = {"smallest": values, "magnitude": -jnp.abs(values)}.get(settings.which, -values)
    order = jnp.argsort(final)
    return Eigenpairs(
        values=values[order],
        vectors=vectors[order],
        residual_norms=residual_norms[order],
        converged=residual_norms[order] <= tolerance * state.scale,
        complete=state.complete & (failed == ALL_FINITE),
        num_products=state.num_products + len(values),
        failed_product=failed,
    )


def _finite_product(matvec: Operator, vector: Array) -> tuple[Array, Array, Bool[Array, ""]]:
    """Return the product and its norm, zeros where that is not finite, and whether it was."""
    product = matvec(vector)
    size = scale.norm(product)
    finite = jnp.isfinite(size)
    return jnp.where(finite, product, 0), jnp.where(finite, size, 0), finite


def _best_first(values: Array, which: str) -> Int[Array, "m"]:
    m = values.size
    if which == "magnitude":
        return jnp.argsort(-jnp.abs(values))
    ascending = np.arange(m)
    if which == "both":
        return jnp.asarray(np.stack([ascending[::-1], ascending], axis=1).ravel()[:m])
    return jnp.asarray(ascending if which == "smallest" else ascending[::-1])


def _fresh_vector(
    key: PRNGKeyArray, basis: Float[Array, "m D"], settings: _Settings
) -> Float[Array, "D"]:
    vector = jax.random.normal(key, (settings.dim,), settings.dtype)
    if settings.mesh is not None:
        vector = sharding.shard_vector(vector, settings.mesh)
    # Normalised in between too: where the basis is nearly full, little is left of the vector.
    for _ in range(2):
        vector, _ = _orthogonalize(vector, basis)
        norm = scale.norm(vector)
        vector = vector / jnp.where(norm > 0, norm, 1)
    return vector


def _orthogonalize(vector: Array, basis: Float[Array, "m D"]) -> tuple[Array, Array]:
    """Project a vector off the basis, twice because of rounding; return the coefficients too."""
    vector, first = project_off(vector, basis)
    vector, second = project_off(vector, basis)
    return vector, first + second
