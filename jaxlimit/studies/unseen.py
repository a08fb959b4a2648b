"""What can be promised of data that training has not seen."""

from typing import Any

import jax
import numpy as np
from scipy import special

from jaxlimit import pruning
from jaxlimit.studies import masks
from jaxlimit.studies.findings import Found, Guaranteed, Measured
from jaxlimit.studies.problem import Problem


def guarantee(problem: Problem, measured: Measured, found: Found | None) -> Guaranteed:
    """Walk from the dense network to the mask found, as far as held-out examples allow.

    Between them stands the mask joined with the heaviest weights outside of it. Fixed-sequence
    testing: at each ratio "more than the tolerated share of unseen examples turns from right to
    wrong" is tested at level δ, and the first that is not rejected ends the walk. The accuracy lost
    is at most that share. Exact for examples that are right or wrong (Clopper and Pearson 1934),
    otherwise by `pruning.hoeffding_bentkus`.

    Raises:
        ValueError: if there are too few examples for even an unchanged network to pass.
    """
    settings, dim = problem.settings, problem.weights.size
    if found is None:
        kept = int(pruning.num_kept(dim, measured.by_loss))
        last = np.asarray(pruning.flat_magnitude_mask(problem.weights, kept))
    else:
        kept, last = int(found.num_kept), np.asarray(found.mask, bool)
    order = masks.order(problem.task, last)
    counts = np.unique(np.geomspace(max(kept, 1), dim, settings.num_held_out).astype(int))[::-1]
    right = _per_example(problem, np.ones(dim, bool))
    needed = int(np.ceil(np.log(settings.delta) / np.log1p(-settings.accuracy_tolerance)))
    if len(right) < needed:
        raise ValueError(
            f"{len(right):,} held-out examples cannot show a loss of at most "
            f"{100 * settings.accuracy_tolerance:g} points: it takes {needed:,}"
        )
    safe, accuracy = 1.0, float(right.mean())
    for i, count in enumerate(counts):
        keep = np.zeros(dim, bool)
        keep[order[:count]] = True
        pruned = _per_example(problem, keep)
        problem.on_progress("held-out", i + 1, len(counts))
        if _p_value(right - pruned, settings.accuracy_tolerance) > settings.delta:
            break
        safe, accuracy = float(count / dim), float(pruned.mean())
    problem.on_progress("held-out", len(counts), len(counts))
    return Guaranteed(
        safe, settings.accuracy_tolerance, settings.delta, len(right), accuracy,
        float(right.mean()),
    )  # fmt: skip


def _p_value(lost: np.ndarray, tolerance: float) -> float:
    """Return how likely so little is lost where more than the tolerance is to be expected."""
    lost = np.maximum(lost, 0)
    if np.isin(lost, (0, 1)).all():
        return float(special.bdtr(lost.sum(), lost.size, tolerance))
    return float(pruning.hoeffding_bentkus(lost.mean(), tolerance, lost.size))


def _per_example(problem: Problem, keep: Any) -> np.ndarray:
    """Return the accuracy of each held-out example by itself."""
    task = problem.task
    params = problem.masked(keep)
    batches = task.held_out
    if not isinstance(batches, list):
        first = jax.tree.leaves(batches)[0]
        batches = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(len(first))]
    values = [_examples(task.accuracy, params, batch, task.operands) for batch in batches]
    return np.concatenate([np.asarray(v, np.float64) for v in values])


@jax.jit(static_argnums=0)
def _examples(accuracy, params, batch, operands):
    def of_example(example):
        return accuracy(params, jax.tree.map(lambda x: x[None], example), *operands)

    return jax.lax.map(of_example, batch, batch_size=256)
