"""The storage that a pruned network takes: dense, sparse, and as a smaller dense network."""

import itertools
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlimit import formats, pruning
from jaxlimit.formats.size import readable_bytes
from jaxlimit.studies import Task


class Stored(NamedTuple):
    """Bytes of a pruned network in its forms.

    Attributes:
        size: bytes dense and sparse.
        compressed: bytes of the smaller dense network with the same outputs; None without one.
        how: its widths, or why there is none.
    """

    size: formats.Size
    compressed: int | None
    how: str

    def __str__(self) -> str:
        """Show the bytes of each form, one a line."""
        if self.compressed is None:
            return f"{self.size}\ncompressed: {self.how}"
        share = self.compressed / self.size.dense
        return (
            f"{self.size}\ncompressed: {readable_bytes(self.compressed)} ({share:.2%} of dense), a "
            f"smaller dense network with the same outputs: {self.how}"
        )


def stored(task: Task, params: Any) -> Stored:
    """Count the bytes of a task's pruned parameters in each form.

    The compressed form is that of `pruning.compress` for a network of the zoo, which the task or
    its loss names. Otherwise it is that of `pruning.compress_dense` for the chain of dense layers
    that the parameters form, or end with, in the order of the numbers in their names.

    Args:
        task: the network.
        params: its parameters, with pruned weights 0.

    Returns:
        A `Stored`.
    """
    size = formats.stored_size(params)
    try:
        found = _compressed(task, params)
    except (TypeError, ValueError):
        why = "none: this is no network of jaxlimit.models and ends in no chain of dense layers"
        return Stored(size, None, why)
    before = jax.tree.leaves(params)
    left = ", ".join(f"{name} {width:,}" for name, width in found.widths.items())
    if found.num_bytes >= sum(np.asarray(leaf).nbytes for leaf in before):
        return Stored(size, found.num_bytes, "every unit does something")
    return Stored(size, found.num_bytes, f"units left: {left}")


def _compressed(task: Task, params: Any) -> pruning.Compressed:
    module = task.module or getattr(task.loss, "module", None)
    if module is not None:
        state = task.operands[0] if task.operands else None
        return pruning.compress(module, params, state)
    layers = _dense_tail(params)
    if len(layers) < 2:
        raise ValueError("one layer has no units between")
    return pruning.compress_dense(params, layers=layers)


def _dense_tail(params: Any) -> list[str]:
    """Return the last layers, by the numbers in their names, whose kernels are matrices."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("/kernel"):
            found[name.removesuffix("/kernel")] = np.ndim(leaf)
    ordered = sorted(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
    tail = itertools.takewhile(lambda name: found[name] == 2, reversed(ordered))
    return list(tail)[::-1]
