"""The state of a running recurrence, and the result of a finished one."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, Int


class Tridiagonalization(NamedTuple):
    """H Q = Q T + β_m q_{m+1} e_mᵀ, with T tridiagonal and the rows of `basis` the columns of Q.

    Attributes:
        diagonal: α₁ … α_m of T, of type float32 at least.
        off_diagonal: β₁ … β_{m-1} of T.
        basis: the Lanczos vectors, row j the j-th; None if not kept.
        residual_norm: β_m, 0 where the subspace is invariant.
        num_valid: steps taken before an invariant subspace or a non-finite product ended the
            recurrence; all entries past it are 0.
        failed_step: the step (from 0) whose product, or its norm, was not finite; -1 if none.
    """

    diagonal: Float[Array, "m"]
    off_diagonal: Float[Array, "m-1"]
    basis: Float[Array, "m D"] | None
    residual_norm: Float[Array, ""]
    num_valid: Int[Array, ""]
    failed_step: Int[Array, ""]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LanczosState:
    """Everything the recurrence needs to go on: two vectors, T so far, and the basis if kept.

    A pytree of its arrays. The last two attributes are static: they fix the kind of recurrence,
    which no later call can change.

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
        reorthogonalize: "full", "selective" or "none"; see `tridiagonalize`.
        store: how the basis is kept; see `tridiagonalize`.
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
    reorthogonalize: str = field(default="full", metadata={"static": True})
    store: str = field(default="device", metadata={"static": True})


# The attributes that are arrays, in order.
ARRAYS = (
    "previous",
    "current",
    "diagonal",
    "off_diagonal",
    "basis",
    "step",
    "num_valid",
    "failed_step",
    "dim",
)
