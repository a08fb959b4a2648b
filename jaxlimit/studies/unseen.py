"""A guarantee for data not used in training."""

from typing import Any

import numpy as np
from scipy import special

from jaxlimit import pruning
from jaxlimit._core.batches import group_batches
from jaxlimit._core.losses import example_losses, mean_loss
from jaxlimit.studies import masks
from jaxlimit.studies.findings import Found, Guaranteed, Measured
from jaxlimit.studies.problem import Problem


def guarantee(problem: Problem, measured: Measured, found: Found | None) -> Guaranteed:
    """Go from the dense network to the mask found, as far as held-out examples allow.

    Between them lie the mask and the largest weights outside it. Fixed-sequence testing: at each
    ratio the hypothesis "more than the tolerated share of unseen examples turns from right to
    wrong" is tested at level δ, until one is not rejected. The accuracy lost is at most that share.
    The test is exact for examples that are right or wrong (Clopper, Pearson 1934), otherwise it is
    `pruning.hoeffding_bentkus`.

    Raises:
        ValueError: if there are too few examples for even an unchanged network to pass, or their
            weights are not in [0, 1].
    """
    settings, dim = problem.settings, problem.weights.size
    if found is None:
        kept = int(pruning.num_kept(dim, measured.by_loss))
        last = np.asarray(pruning.flat_magnitude_mask(problem.weights, kept))
    else:
        kept, last = int(found.num_kept), np.asarray(found.mask, bool)
    order = masks.order(problem.task, last)
    counts = np.unique(np.geomspace(max(kept, 1), dim, settings.num_held_out).astype(int))[::-1]
    right, weights = _per_example(problem, np.ones(dim, bool))
    needed = int(np.ceil(np.log(settings.delta) / np.log1p(-settings.accuracy_tolerance)))
    if len(right) < needed:
        raise ValueError(
            f"{len(right):,} held-out examples cannot show a loss of at most "
            f"{100 * settings.accuracy_tolerance:g} points: it takes {needed:,}"
        )
    safe, dense = 1.0, float(np.average(right, weights=weights))
    accuracy = dense
    for i, count in enumerate(counts):
        keep = np.zeros(dim, bool)
        keep[order[:count]] = True
        pruned, _ = _per_example(problem, keep)
        problem.on_progress("held-out", i + 1, len(counts))
        if _p_value(right - pruned, weights, settings.accuracy_tolerance) > settings.delta:
            break
        safe, accuracy = float(count / dim), float(np.average(pruned, weights=weights))
    problem.on_progress("held-out", len(counts), len(counts))
    return Guaranteed(
        safe, settings.accuracy_tolerance, settings.delta, len(right), accuracy, dense,
    )  # fmt: skip


def _p_value(lost: np.ndarray, weights: np.ndarray, tolerance: float) -> float:
    """Return the p-value of a loss this small if more than the tolerance is expected."""
    lost = np.maximum(lost, 0)
    if np.isin(lost, (0, 1)).all() and (weights == 1).all():
        return float(special.bdtr(lost.sum(), lost.size, tolerance))
    # w(lost - t) is above 0 in expectation where the weighted share is above t.
    mean = tolerance + (weights * (lost - tolerance)).mean()
    return float(pruning.hoeffding_bentkus(np.clip(mean, 0, 1), tolerance, lost.size))


def _per_example(problem: Problem, keep: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracy and the weight of each held-out example of weight above 0."""
    task, params = problem.task, problem.masked(keep)
    assert task.accuracy is not None
    accuracy, operands = mean_loss(task.accuracy, params, task.held_out, task.operands)
    examples = group_batches(task.held_out)
    values, weights = example_losses(accuracy, params, examples, operands)
    values = np.asarray(values, np.float64)
    weights = np.ones(values.size) if weights is None else np.asarray(weights, np.float64)
    if weights.max() > 1:
        raise ValueError(
            f"the weights of held-out examples must lie in [0, 1], got up to {weights.max():g}"
        )
    return values[weights > 0], weights[weights > 0]
