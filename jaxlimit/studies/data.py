"""Data as a user has it: arrays, lists, or anything that can be gone through again."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlimit._core.batches import first_batch, leading_size
from jaxlimit._core.memory import device_memory


class Held(NamedTuple):
    """Data as the library takes them, and how many examples there were.

    Attributes:
        batches: what is held.
        num_given: examples that were counted, those that found no room among them.
    """

    batches: Any
    num_given: int


def held_batches(batches: Any, *, name: str = "batches", memory: float | None = None) -> Any:
    """Return batches as the library takes them, those of a loader held on the host.

    The `batches` of `hold`.

    >>> class Loader:
    ...     def __iter__(self):
    ...         return iter([np.ones((4, 2)), np.ones((3, 2))])
    >>> [batch.shape for batch in held_batches(Loader())]
    [(4, 2), (3, 2)]
    """
    return hold(batches, name=name, memory=memory).batches


def hold(batches: Any, *, name: str = "batches", memory: float | None = None) -> Held:
    """Count the examples, and hold those of a loader on the host.

    Arrays with leaves [num_batches, batch, ...] and lists pass as they are. Any other object that
    can be gone through more than once (a PyTorch `DataLoader`, a Grain loader, a TFDS or tf.data
    set) is gone through once, its batches counted and kept as NumPy arrays, so that every later
    pass sees the same examples, however the loader shuffles. Of a loader with more than fits every
    second batch is kept, or every fourth, and so on.

    Args:
        batches: the data.
        name: what to call them in a message.
        memory: bytes that they may take, on the host and on the device; if not given, three
            quarters of what is free on the host, and half of an accelerator's memory.

    Returns:
        A `Held`.

    Raises:
        TypeError: for a generator or another iterator, which a first pass would use up, and for
            what are no batches at all.
        ValueError: if there are none.
        MemoryError: if not even one batch fits.
    """
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{name} must be gone through more than once, got a {type(batches).__name__}, which "
            "one pass uses up: give list(...) of it, or an object that __iter__ starts again"
        )
    if _is_data(batches):
        first_batch(batches)  # raises where there is none
        return Held(batches, count_examples(batches))
    if not isinstance(batches, Iterable):
        raise TypeError(f"{name} must be arrays, a list of batches or a loader of them, "
                        f"got {type(batches).__name__}")  # fmt: skip
    held, given = _thinned(batches, name, _room() if memory is None else memory)
    if not held:
        raise ValueError(f"{name} must hold at least one batch, got an empty "
                         f"{type(batches).__name__}")  # fmt: skip
    return Held(held, given)


def _thinned(batches: Iterable, name: str, room: float) -> tuple[list, int]:
    """Keep every batch, and of what is kept every second one whenever the room is used up."""
    held, used, stride, given = [], 0, 1, 0
    for i, batch in enumerate(batches):
        batch = jax.tree.map(_as_numpy, batch)
        given += leading_size(batch)
        if i % stride:
            continue
        held.append(batch)
        used += _bytes(batch)
        while used > room:
            if len(held) == 1:
                raise MemoryError(
                    f"one batch of {name} takes {used / 1e9:.3g} GB, more than the "
                    f"{room / 1e9:.3g} GB that there are for them: make batches smaller"
                )
            held, stride = held[::2], 2 * stride
            used = sum(map(_bytes, held))
    return held, given


def _bytes(batch: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


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


def _room() -> float:
    device = jax.local_devices()[0]
    of_device = None if device.platform == "cpu" else device_memory(device)
    return min(0.75 * _free_memory(), float("inf") if of_device is None else of_device / 2)


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
