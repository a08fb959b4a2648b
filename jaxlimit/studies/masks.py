"""Masks as pytrees and flat, and the masks between one that was found and the dense network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jaxlimit._core.weights import flatten_weights, selected
from jaxlimit.studies.task import Task


def flat_mask(task: Task, mask: Any) -> Bool[np.ndarray, "D"]:
    """Return the marks of the weights under study, flat."""
    chosen = selected(task.params, task.where)
    leaves = zip(jax.tree.leaves(mask), chosen, strict=True)
    return np.concatenate([np.asarray(leaf, bool).ravel() for leaf, studied in leaves if studied])


def mask_tree(task: Task, keep: Bool[np.ndarray, "D"]) -> Any:
    """Return a flat mask as a pytree like the parameters; what is not under study is kept."""
    leaves, treedef = jax.tree.flatten(task.params)
    marks, start = [], 0
    for leaf, studied in zip(leaves, selected(task.params, task.where), strict=True):
        size = np.size(leaf)
        part = keep[start : start + size] if studied else np.ones(size, bool)
        marks.append(jnp.asarray(np.reshape(part, np.shape(leaf))))
        start += size if studied else 0
    return jax.tree.unflatten(treedef, marks)


def joined_mask(task: Task, mask: Bool[np.ndarray, "D"], ratio: float) -> Bool[np.ndarray, "D"]:
    """Return a flat mask of a given ratio: the mask's own weights first, then the heaviest others.

    Args:
        task: the network.
        mask: flat.
        ratio: fraction kept; below that of the mask the heaviest of its own stay.

    Raises:
        ValueError: if `ratio` lies outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    keep = np.zeros(mask.shape, bool)
    keep[order(task, mask)[: int(ratio * mask.size + 0.5)]] = True
    return keep


def order(task: Task, mask: Bool[np.ndarray, "D"]) -> np.ndarray:
    """Return the places of the weights, those of the mask first, the heaviest first in each."""
    weights = np.abs(np.asarray(flatten_weights(task.params, task.where)[0], np.float64))
    return np.lexsort((-weights, ~np.asarray(mask, bool)))
