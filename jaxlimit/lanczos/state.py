"""What a recurrence is while it runs and when it is done, and how much it stores."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlimit._core.checks import check_choice
from jaxlimit._core.memory import check_memory

REORTHOGONALIZE = ("full", "selective", "none")
FULL_DEPTH = 256  # steps up to which "auto" is "full"
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


def choose(reorthogonalize: str, num_steps: int) -> str:
    """Return what "auto" stands for at a depth, anything else as it is.

    To 256 steps "full": as many products say most, and to that depth the basis can be paid for
    (`benchmarks/kink_at_zero.py`). Deeper, "selective", of the same memory at any depth.

    Args:
        reorthogonalize: "auto", or one of `REORTHOGONALIZE`.
        num_steps: the greatest depth.

    Returns:
        One of `REORTHOGONALIZE`.

    Raises:
        ValueError: if `reorthogonalize` is unknown.

    >>> choose("auto", 256), choose("auto", 1280), choose("none", 256)
    ('full', 'selective', 'none')
    """
    check_choice("reorthogonalize", reorthogonalize, ("auto", *REORTHOGONALIZE))
    if reorthogonalize != "auto":
        return reorthogonalize
    return "full" if num_steps <= FULL_DEPTH else "selective"


def num_rows(num_steps: int, reorthogonalize: str) -> int:
    """Return how many vectors a recurrence of `num_steps` steps stores besides its own two.

    Args:
        num_steps: the greatest depth.
        reorthogonalize: one of `REORTHOGONALIZE`.

    >>> [num_rows(100, mode) for mode in REORTHOGONALIZE]
    [100, 72, 0]
    """
    selective = min(WARM_UP, num_steps) + NUM_LOCKED
    return {"full": num_steps, "selective": selective, "none": 0}[reorthogonalize]


def check_basis(rows: int, dim: int, dtype: Any, store: str = "device") -> None:
    """Raise `MemoryError` if `rows` vectors, kept as `store` says, are more than the device holds.

    Those in the host's memory pass.

    Args:
        rows: vectors of all recurrences, see `num_rows`.
        dim: their entries on one device.
        dtype: their type.
        store: how they are kept, as for `tridiagonalize`.

    Raises:
        MemoryError: says what takes less.

    >>> check_basis(10**9, 10**9, "float32")
    Traceback (most recent call last):
    MemoryError: a Lanczos basis of 1000000000 vectors of 1000000000 entries takes ...
    """
    if store == "pinned_host":
        return
    check_memory(
        f"a Lanczos basis of {rows} vectors of {dim} entries",
        rows * dim * jnp.dtype(jnp.bfloat16 if store == "bfloat16" else dtype).itemsize,
        "take fewer steps, store='bfloat16' (half of that), reorthogonalize='selective' "
        f"({WARM_UP + NUM_LOCKED} vectors a probe) or 'none' (no basis), or probes one by one",
    )
