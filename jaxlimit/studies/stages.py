"""The stages of a study, each a function of the problem and of earlier results."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlimit import curvature, limits, pruning
from jaxlimit._core.estimate import positive_interval
from jaxlimit.limits.tolerance import examine
from jaxlimit.studies.estimation import LimitEstimate, check_deterministic, estimate_limit
from jaxlimit.studies.findings import AtPrediction, Certified, Found, LayerLimits, Layers, Measured
from jaxlimit.studies.layers import layer_limits
from jaxlimit.studies.problem import Problem, accuracy_of


def measure(problem: Problem) -> Measured:
    """Measure ε, and sweep magnitude pruning, coarse and then fine around the limit."""
    task, settings = problem.task, problem.settings
    _check_loss(problem)
    if settings.epsilon is None:
        found = limits.loss_tolerance(*problem.args, *task.operands, mesh=task.mesh)
        epsilon, error = float(found.value), float(found.standard_error)
    else:
        examine(*problem.args, *task.operands, mesh=task.mesh)  # raises for a sum
        epsilon, error = float(settings.epsilon), 0.0
    dim = problem.weights.size
    smallest = max(settings.smallest_ratio, 1 / dim)
    ratios = np.geomspace(smallest, 1, settings.num_ratios)
    coarse = _sweep(problem, task.loss, task.batches, ratios, "magnitude")
    limit = float(pruning.empirical_limit(coarse, coarse.losses[-1], epsilon))
    step = ratios[0] / ratios[1]
    between = np.geomspace(limit * step, limit, settings.num_ratios // 3 + 2)[1:-1]
    fine = _sweep(problem, task.loss, task.batches, between, "magnitude, near the limit")
    both = jax.tree.map(lambda *x: np.concatenate(x), coarse, fine)
    order = np.argsort(both.ratios, kind="stable")
    both = jax.tree.map(lambda x: x[order], both)
    dense = float(both.losses[-1])
    passed = float(pruning.empirical_limit(both, dense, epsilon))
    accuracies, by_accuracy = np.full(order.shape, np.nan), np.nan
    if task.accuracy is not None:
        data = task.batches if task.held_out is None else task.held_out
        sweep = _sweep(problem, task.accuracy, data, both.ratios, "accuracy")
        accuracies = np.asarray(sweep.losses)
        outside = accuracies[~((accuracies >= 0) & (accuracies <= 1 + 1e-5))]
        if outside.size:
            raise ValueError(f"accuracy must lie in [0, 1], got {outside[0]:g}")
        falling = sweep._replace(losses=-sweep.losses)
        allowed = settings.accuracy_tolerance
        by_accuracy = float(pruning.empirical_limit(falling, -accuracies[-1], allowed))
        by_accuracy = _counted(by_accuracy, dim)
    return Measured(
        dim, epsilon, error, dense, float(accuracies[-1]), both.ratios, both.losses, both.radii,
        accuracies, _counted(passed, dim), by_accuracy, bool(passed == both.ratios[0]),
    )  # fmt: skip


def _check_loss(problem: Problem) -> None:
    dense = problem.mean(problem.task.loss, problem.task.params, problem.task.batches)
    if not np.isfinite(dense):
        raise FloatingPointError(
            f"loss must be finite on all data, got {dense}: are there labels out of range, or "
            "data that are not finite?"
        )
    check_deterministic(*problem.args, *problem.task.operands)


def _counted(ratio: float, dim: int) -> float:
    """Return a ratio rounded to a whole number of weights."""
    return int(pruning.num_kept(dim, ratio)) / dim


def _sweep(problem, function, batches, ratios, stage) -> pruning.SweepResult:
    return pruning.magnitude_sweep(
        function,
        problem.task.params,
        batches,
        ratios,
        *problem.task.operands,
        where=problem.task.where,
        on_progress=problem.on_progress,
        stage=stage,
        mesh=problem.task.mesh,
    )


def search(problem: Problem, measured: Measured) -> tuple[Found, Certified | None]:
    """Search for the sparsest mask whose true loss is within ε; return its certificate too."""
    task = problem.task
    result = pruning.smallest_mask(
        *problem.args,
        *task.operands,
        epsilon=measured.epsilon,
        key=problem.key,
        budget=pruning.Budget(num_products=problem.settings.certificate_products),
        where=task.where,
        on_progress=problem.on_progress,
        mesh=task.mesh,
    )
    keep, table = pruning.flat_mask(result.mask, task.params, task.where), result.candidates
    found = Found(
        keep,
        int(result.num_kept),
        float(result.loss),
        accuracy_of(problem, keep),
        str(result.method),
        np.array([candidate.method for candidate in table]),
        np.array([candidate.num_kept for candidate in table]),
        np.array([candidate.loss for candidate in table]),
        np.array(result.notes, str),
    )
    bound = result.certificate
    if bound is None:
        return found, None
    certified = Certified(
        int(bound.num_kept),
        float(bound.slack),
        int(bound.num_products),
        np.nan,
        _shares(result.shares),
    )
    return found, certified


def certify(
    problem: Problem, measured: Measured, found: Found | None, estimate: LimitEstimate
) -> Certified:
    """Bound all masks by the quadratic of the Hessian, made convex with the help of its spectrum.

    For a loss that is not split, which has no Gauss-Newton matrix.

    Raises:
        ValueError: if the spectrum has too few steps to tell how negative the Hessian is, or a
            direction of more negative curvature is met.
    """
    task, settings = problem.task, problem.settings
    shift = limits.convex_shift(estimate.measure)
    if not np.isfinite(shift):
        raise ValueError("the spectrum has too few steps to tell how negative the Hessian is")
    how: dict[str, Any] = {"where": task.where, "mesh": task.mesh}
    hessian = curvature.hessian_matvec(*problem.args, *task.operands, **how)
    gradient = curvature.mean_gradient(*problem.args, *task.operands, **how)
    at = (hessian, gradient, problem.weights)
    bound = limits.certificate(
        *at,
        measured.epsilon,
        num_products=settings.certificate_products,
        shift=shift,
        known_kept=None if found is None else found.num_kept,
        on_progress=problem.on_progress,
    )
    parts = None
    if found is not None and measured.epsilon > 0:
        rise = found.loss - measured.dense_loss
        keep = np.asarray(found.mask, bool)
        parts = limits.shares(*at, keep, measured.epsilon, rise=rise)
    return Certified(
        int(bound.num_kept), float(bound.slack), int(bound.num_products), shift, _shares(parts)
    )


def _shares(parts: limits.Shares | None) -> np.ndarray:
    return np.full(3, np.nan) if parts is None else np.array(parts[:3], float)


def predict(problem: Problem, measured: Measured, checkpoint_dir: Any, **known: Any):
    """Run Lanczos, and solve for ρ* and the other numbers of a `LimitEstimate`."""
    settings, task = problem.settings, problem.task
    error = jnp.asarray(measured.epsilon_error)
    epsilon = positive_interval(jnp.asarray(measured.epsilon), error)
    return estimate_limit(
        *problem.args,
        *task.operands,
        key=problem.key,
        epsilon=epsilon,
        where=task.where,
        num_steps=settings.num_steps,
        num_probes=settings.num_probes,
        num_gap_steps=settings.num_gap_steps,
        tolerance=settings.tolerance,
        mesh=task.mesh,
        checkpoint_dir=checkpoint_dir,
        on_progress=problem.on_progress,
        **known,
    )


def at_prediction(problem: Problem, estimate: LimitEstimate) -> AtPrediction:
    """Measure the effect of magnitude pruning at ρ*."""
    task, weights = problem.task, problem.weights
    keep = pruning.flat_magnitude_mask(weights, estimate.prediction.num_kept)
    loss = problem.mean(task.loss, problem.masked(keep), task.batches)
    return AtPrediction(float(estimate.prediction.ratio), loss, accuracy_of(problem, keep))


def kept_by_layer(problem: Problem, measured: Measured, found: Found | None) -> Layers:
    """Count what magnitude and the found mask keep of each layer."""
    task, weights = problem.task, problem.weights
    at = pruning.num_kept(weights.size, measured.by_loss)
    magnitude = pruning.flat_magnitude_mask(weights, at)
    layers = pruning.kept_by_layer(magnitude, task.params, where=task.where)
    kept, sizes = np.array(list(layers.values())).T
    of_found = np.full(len(layers), -1)
    if found is not None:
        mask = np.asarray(found.mask, bool)
        counts = pruning.kept_by_layer(mask, task.params, where=task.where)
        of_found = np.array([count for count, _ in counts.values()])
    return Layers(np.array(list(layers)), sizes, kept, of_found)


def limits_by_layer(problem: Problem, measured: Measured) -> LayerLimits:
    """Run Lanczos on the block of each layer, and divide ε among them."""
    task = problem.task
    result = layer_limits(
        *problem.args,
        *task.operands,
        epsilon=measured.epsilon,
        key=problem.key,
        where=task.where,
        num_steps=problem.settings.num_layer_steps,
        mesh=task.mesh,
        on_progress=lambda done, total: problem.on_progress("layers", done, total),
    )
    found = result.limits.limits
    return LayerLimits(np.array(list(found)), np.array([int(x.num_kept) for x in found.values()]))
