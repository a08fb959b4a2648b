"""Masks between one that was found and the dense network."""

import numpy as np
from jaxtyping import Bool

from jaxlimit._core.weights import flatten_weights
from jaxlimit.studies.task import Task


def joined_mask(task: Task, mask: Bool[np.ndarray, "D"], ratio: float) -> Bool[np.ndarray, "D"]:
    """Return a flat mask of a given ratio: the weights of `mask` first, then the largest others.

    Args:
        task: the network.
        mask: flat.
        ratio: fraction kept; if it is below that of `mask`, only the largest weights of it stay.

    Raises:
        ValueError: if `ratio` lies outside [0, 1].
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must lie in [0, 1], got {ratio}")
    keep = np.zeros(mask.shape, bool)
    keep[order(task, mask)[: int(ratio * mask.size + 0.5)]] = True
    return keep


def order(task: Task, mask: Bool[np.ndarray, "D"]) -> np.ndarray:
    """Return the indices of the weights: those of the mask, then the others, both by magnitude."""
    weights = np.abs(np.asarray(flatten_weights(task.params, task.where)[0], np.float64))
    return np.lexsort((-weights, ~np.asarray(mask, bool)))
