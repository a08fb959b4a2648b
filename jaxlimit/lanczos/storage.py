"""How much a recurrence stores, by how it is reorthogonalised; internal to this package."""

from typing import Any

import jax.numpy as jnp

from jaxlimit._core.checks import check_choice
from jaxlimit._core.memory import check_memory

REORTHOGONALIZE = ("full", "selective", "none")
FULL_DEPTH = 256  # steps up to which "auto" is "full"
WARM_UP = 48  # steps that "selective" reorthogonalises fully
NUM_LOCKED = 24  # converged Ritz vectors that it goes on with, at most


def choose(reorthogonalize: str, num_steps: int) -> str:
    """Return what "auto" stands for at a depth, anything else as it is.

    "full" up to 256 steps: it gets the most from each product, and the basis is affordable to that
    depth (`benchmarks/kink_at_zero.py`). Deeper, "selective", whose memory does not grow.

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
        store: how they are kept; see `tridiagonalize`.

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
