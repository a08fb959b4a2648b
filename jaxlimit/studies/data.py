"""Data as a user has it: arrays, lists, or anything that can be gone through again."""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxlimit._core.batches import leading_size


def held_batches(batches: Any, *, name: str = "batches", memory: float | None = None) -> Any:
    """Return batches as the library takes them, those of a loader held on the host.

    Arrays with leaves [num_batches, batch, ...] and lists pass as they are. Any other object that
    can be gone through more than once (a PyTorch `DataLoader`, a Grain loader, a TFDS or tf.data
    set) is gone through once, its batches counted and kept as NumPy arrays, so that every later
    pass sees the same examples, however the loader shuffles.

    Args:
        batches: the data.
        name: what to call them in a message.
        memory: bytes of the host that they may take; three quarters of what is free if not given.

    Raises:
        TypeError: for a generator or another iterator, which a first pass would use up, and for
            what are no batches at all.
        ValueError: if there are none.
        MemoryError: if they do not fit.

    >>> class Loader:
    ...     def __iter__(self):
    ...         return iter([np.ones((4, 2)), np.ones((3, 2))])
    >>> [batch.shape for batch in held_batches(Loader())]
    [(4, 2), (3, 2)]
    """
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{name} must be gone through more than once, got a {type(batches).__name__}, which "
            "one pass uses up: give list(...) of it, or an object whose __iter__ starts anew"
        )
    if _is_data(batches):
        return batches
    if not isinstance(batches, Iterable):
        raise TypeError(f"{name} must be arrays, a list of batches or a loader of them, "
                        f"got {type(batches).__name__}")  # fmt: skip
    free = 0.75 * _free_memory() if memory is None else memory
    held, used = [], 0
    for batch in batches:
        batch = jax.tree.map(_as_numpy, batch)
        leading_size(batch)
        used += sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
        if used > free:
            raise MemoryError(
                f"{name} take more than the {free / 1e9:.3g} GB that the host has for them after "
                f"{len(held) + 1} batches: give fewer examples, or make the Hessian product with "
                "curvature.hessian_matvec_over, which reads them anew each time"
            )
        held.append(batch)
    if not held:
        raise ValueError(f"{name} must hold at least one batch, got an empty "
                         f"{type(batches).__name__}")  # fmt: skip
    return held


def count_examples(batches: Any) -> int:
    """Count the examples of batches in either form.

    >>> count_examples([np.ones((4, 2)), np.ones((3, 2))]), count_examples(np.ones((5, 3, 2)))
    (7, 15)
    """
    if isinstance(batches, list):
        return sum(leading_size(batch) for batch in batches)
    shape = np.shape(jax.tree.leaves(batches)[0])
    return int(shape[0] * shape[1])


def _is_data(batches: Any) -> bool:
    if isinstance(batches, list):
        return True
    leaves = jax.tree.leaves(batches)
    return bool(leaves) and all(isinstance(x, jax.Array | np.ndarray) for x in leaves)


def _as_numpy(leaf: Any) -> np.ndarray:
    # Tensors of other libraries give themselves as NumPy's by either of these.
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
    array = np.asarray(leaf)
    if array.dtype == object:
        raise TypeError(f"batches must hold arrays of numbers, got {type(leaf).__name__}")
    return array


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
