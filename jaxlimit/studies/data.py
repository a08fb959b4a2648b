"""Data as a user has them: arrays, lists, or anything that can be iterated over repeatedly."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxlimit._core.batches import count_examples, first_batch, leading_size
from jaxlimit._core.host import HostBatches
from jaxlimit._core.memory import device_memory

__all__ = ["HostBatches", "count_examples", "held_batches"]

_ALIGNED = 64  # bytes: every view of the file starts at a multiple


def held_batches(batches: Any, *, name: str = "batches", memory: float | None = None) -> Any:
    """Return all batches in a form that the library takes, on the host if they do not fit.

    Arrays with leaves [num_batches, batch, ...] and lists pass unchanged. Any other object that can
    be iterated over more than once (a PyTorch `DataLoader`, a Grain loader, a TFDS or tf.data set)
    is read once, and its batches are kept as NumPy arrays: every later pass sees the same examples,
    even if the loader shuffles. What exceeds `memory` goes to an unnamed temporary file, which
    disappears with the process. Data that do not fit, from a loader or as NumPy arrays, become
    `HostBatches`: a device has one batch at a time, and every number is that of all examples.

    Args:
        batches: the data.
        name: their name in error messages.
        memory: bytes that they may take, on the host and on the device; by default three eighths
            of the free memory of the host, and half of that of an accelerator.

    Returns:
        The batches unchanged, a list of NumPy batches, or `HostBatches`.

    Raises:
        TypeError: for a generator or another iterator, which one pass uses up, and for anything
            else that is no batches.
        ValueError: if there are no batches.
        OSError: if there is no room for the file.

    >>> class Loader:
    ...     def __iter__(self):
    ...         return iter([np.ones((4, 2)), np.ones((3, 2))])
    >>> [batch.shape for batch in held_batches(Loader())]
    [(4, 2), (3, 2)]
    >>> held_batches(Loader(), memory=50)
    HostBatches(2 batches)
    """
    if isinstance(batches, Iterator):
        raise TypeError(
            f"{name} must allow more than one pass, got a {type(batches).__name__}, which "
            "one pass uses up: give list(...) of it, or an object that __iter__ starts again"
        )
    on_host, on_device = _rooms() if memory is None else (memory, memory)
    if _is_data(batches):
        first_batch(batches, name=name)  # raises where there is none
        return _given(batches, on_device)
    if not isinstance(batches, Iterable):
        raise TypeError(f"{name} must be arrays, a list of batches or a loader of them, "
                        f"got {type(batches).__name__}")  # fmt: skip
    held = _read(batches, name, on_host)
    if not held:
        raise ValueError(f"{name} must hold at least one batch, got an empty "
                         f"{type(batches).__name__}")  # fmt: skip
    fits = sum(map(_bytes, held)) <= min(on_host, on_device)
    return held if fits else HostBatches(held)


def _given(batches: Any, room: float) -> Any:
    """Return batches unchanged if they fit or are on the device already."""
    is_numpy = all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batches))
    if isinstance(batches, HostBatches) or not is_numpy or _bytes(batches) <= room:
        return batches
    if isinstance(batches, list):
        return HostBatches(batches)
    count = leading_size(batches)
    return HostBatches(jax.tree.map(lambda x, i=i: x[i], batches) for i in range(count))


def _read(batches: Iterable, name: str, room: float) -> list:
    """Keep every batch; once they exceed the room, in a file."""
    held, used, file = [], 0, None
    for batch in batches:
        batch = jax.tree.map(_as_numpy, batch)
        leading_size(batch, name=name)
        used += _bytes(batch)
        held.append(batch if file is None else file.write(batch))
        if file is None and used > room:
            file = _File(name)
            held = list(map(file.write, held))
    return held if file is None else file.views(held)


class _File:
    """An unnamed file of batches, which exists as long as views of it."""

    def __init__(self, name: str) -> None:
        self.name, self.end = name, 0
        self.file = tempfile.TemporaryFile()  # noqa: SIM115

    def write(self, batch: Any) -> Any:
        """Append a batch; return functions that take its leaves from the bytes of the file."""
        return jax.tree.map(self._append, batch)

    def _append(self, leaf: np.ndarray) -> Callable:
        start, stop = self.end, self.end + leaf.nbytes
        self.end = -(-stop // _ALIGNED) * _ALIGNED
        try:
            self.file.write(np.ascontiguousarray(leaf).tobytes() + bytes(self.end - stop))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.name} fit neither memory nor {tempfile.gettempdir()}, after "
                f"{stop / 1e9:.3g} GB: set TMPDIR to a folder with more room: {error.strerror}",
            ) from error
        dtype, shape = leaf.dtype, leaf.shape
        return lambda content: content[start:stop].view(dtype).reshape(shape)

    def views(self, held: list) -> list:
        """Return the batches as views of the file, which are read only when used."""
        self.file.flush()
        content = np.memmap(self.file, np.uint8, "r")
        return jax.tree.map(lambda view: view(content), held)


def _bytes(batch: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(batch))


def _is_data(batches: Any) -> bool:
    if isinstance(batches, list):
        return True
    leaves = jax.tree.leaves(batches)
    return bool(leaves) and all(isinstance(x, jax.Array | np.ndarray) for x in leaves)


def _as_numpy(leaf: Any) -> np.ndarray:
    # Tensors of other libraries become NumPy arrays by one of these.
    if hasattr(leaf, "detach"):
        leaf = leaf.detach().cpu()
    array = np.asarray(leaf)
    if array.dtype == object:
        raise TypeError(f"batches must hold arrays of numbers, got {type(leaf).__name__}")
    return array


def _rooms() -> tuple[float, float]:
    """Return the bytes that may be held on the host, and on the device."""
    host = 3 / 8 * _free_memory()
    device = jax.local_devices()[0]
    of_device = None if device.platform == "cpu" else device_memory(device)
    return host, host if of_device is None else of_device / 2


def _free_memory() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
