"""The stages of a study, each a function of the problem and of what earlier ones found."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray
from scipy import special

from jaxlimit import limits, pruning
from jaxlimit._core.estimate import positive_interval
from jaxlimit._core.weights import flatten_weights
from jaxlimit.studies import masks
from jaxlimit.studies.estimation import LimitEstimate, check_deterministic, estimate_limit
from jaxlimit.studies.layers import layer_limits, layer_masks
from jaxlimit.studies.settings import StudySettings
from jaxlimit.studies.task import Task

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task with all that its stages need beside it."""

    task: Task
    key: PRNGKeyArray
    settings: StudySettings
    on_progress: Progress

    @property
    def args(self) -> tuple:
        """Loss, parameters and training data, as every function takes them."""
        return self.task.loss, self.task.params, self.task.batches

    @property
    def weights(self) -> Any:
        """The weights under study, flat."""
        return flatten_weights(self.task.params, self.task.where)[0]

    def masked(self, keep: Any) -> Any:
        """Return the parameters with the weights outside of a flat mask set to 0."""
        weights, unflatten = flatten_weights(self.task.params, self.task.where)
        return unflatten(jnp.where(jnp.asarray(keep), weights, 0))

    def mean(self, function: Callable, params: Any, batches: Any) -> float:
        """Return the mean of a loss or an accuracy over all examples."""
        sweep = pruning.magnitude_sweep(
            function, params, batches, [1.0], *self.task.operands, where=lambda *_: True
        )
        return float(sweep.losses[0])


class Measured(NamedTuple):
    """What magnitude pruning does to this network.

    Attributes:
        dim: D, weights under study.
        epsilon: ε, the tolerated rise of the loss.
        epsilon_error: its standard error.
        dense_loss: L(w*).
        dense_accuracy: on held-out data, or on the training data if there are none; NaN without.
        ratios: of the sweep, ascending.
        losses: at each.
        radii: R at each.
        accuracies: at each; NaN without an accuracy.
        by_loss: smallest ratio within ε, at it and at all larger ones of the sweep.
        by_accuracy: the same within the tolerance of accuracy; NaN without.
        edge: whether the sweep's smallest ratio still passes.
    """

    dim: int
    epsilon: float
    epsilon_error: float
    dense_loss: float
    dense_accuracy: float
    ratios: np.ndarray
    losses: np.ndarray
    radii: np.ndarray
    accuracies: np.ndarray
    by_loss: float
    by_accuracy: float
    edge: bool


class Found(NamedTuple):
    """The sparsest mask within ε that was found.

    Attributes:
        mask: True where a weight stays [D].
        num_kept: how many those are.
        loss: of the network so pruned.
        accuracy: likewise; NaN without.
        method: which candidate won.
        names: of the candidates.
        kept: weights that each keeps.
        losses: of each.
        shares: of ε that are linear, quadratic and beyond the model at the mask [3]; NaN where the
            loss is not split.
        notes: candidates that were left out and why, and doubts about the loss.
    """

    mask: np.ndarray
    num_kept: int
    loss: float
    accuracy: float
    method: str
    names: np.ndarray
    kept: np.ndarray
    losses: np.ndarray
    shares: np.ndarray
    notes: np.ndarray


class Certified(NamedTuple):
    """The fewest weights that any mask within ε of the Gauss-Newton quadratic keeps.

    Attributes:
        num_kept: that number.
        slack: bound of the rounding that is included.
        num_products: spent.
    """

    num_kept: int
    slack: float
    num_products: int


class AtPrediction(NamedTuple):
    """What magnitude pruning at ρ* does."""

    ratio: float
    loss: float
    accuracy: float


class Layers(NamedTuple):
    """How many weights of each layer are kept.

    Attributes:
        names: of the leaves under study.
        sizes: weights of each.
        magnitude: kept by magnitude at its measured limit.
        found: kept by the mask that was found; -1 if there is none.
    """

    names: np.ndarray
    sizes: np.ndarray
    magnitude: np.ndarray
    found: np.ndarray


class LayerLimits(NamedTuple):
    """How many weights of each layer the theory asks for, the tolerance shared out among them.

    Attributes:
        names: of the layers, as in `Layers`.
        kept: weights that each keeps.
    """

    names: np.ndarray
    kept: np.ndarray


class Guaranteed(NamedTuple):
    """The sparsest ratio that is safe on unseen data, with high probability.

    Attributes:
        ratio: that ratio; 1, the dense network, where even the first step is not shown to be safe.
        tolerance: share of examples that may turn from right to wrong.
        delta: probability that the promise fails.
        num_examples: held-out examples.
        accuracy: on them at the ratio.
        dense_accuracy: likewise of the dense network.
    """

    ratio: float
    tolerance: float
    delta: float
    num_examples: int
    accuracy: float
    dense_accuracy: float


def measure(problem: Problem) -> Measured:
    """Measure ε, and sweep magnitude pruning, coarse and then fine around the limit."""
    task, settings = problem.task, problem.settings
    check_deterministic(*problem.args, *task.operands)
    if settings.epsilon is None:
        found = limits.loss_tolerance(*problem.args, *task.operands)
        epsilon, error = float(found.value), float(found.standard_error)
    else:
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
    by_loss = float(pruning.empirical_limit(both, dense, epsilon))
    accuracies, by_accuracy = np.full(order.shape, np.nan), np.nan
    if task.accuracy is not None:
        data = task.batches if task.held_out is None else task.held_out
        sweep = _sweep(problem, task.accuracy, data, both.ratios, "accuracy")
        accuracies = np.asarray(sweep.losses)
        falling = sweep._replace(losses=-sweep.losses)
        allowed = settings.accuracy_tolerance
        by_accuracy = float(pruning.empirical_limit(falling, -accuracies[-1], allowed))
    return Measured(
        dim, epsilon, error, dense, float(accuracies[-1]), both.ratios, both.losses, both.radii,
        accuracies, by_loss, by_accuracy, bool(by_loss == both.ratios[0]),
    )  # fmt: skip


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
    )


def search(problem: Problem, measured: Measured) -> tuple[Found, Certified | None]:
    """Look for the sparsest mask whose true loss is within ε; the certificate comes with it."""
    task = problem.task
    result = pruning.smallest_mask(
        *problem.args,
        *task.operands,
        epsilon=measured.epsilon,
        key=problem.key,
        where=task.where,
        on_progress=problem.on_progress,
    )
    keep, table = masks.flat_mask(task, result.mask), result.candidates
    found = Found(
        keep,
        int(result.num_kept),
        float(result.loss),
        accuracy_of(problem, keep),
        str(result.method),
        np.array([candidate.method for candidate in table]),
        np.array([candidate.num_kept for candidate in table]),
        np.array([candidate.loss for candidate in table]),
        np.full(3, np.nan) if result.shares is None else np.array(result.shares[:3], float),
        np.array(result.notes, str),
    )
    bound = result.certificate
    if bound is None:
        return found, None
    return found, Certified(int(bound.num_kept), float(bound.slack), int(bound.num_products))


def accuracy_of(problem: Problem, keep: Any) -> float:
    """Return the accuracy of a flat mask, on held-out data where there are any; NaN without."""
    task = problem.task
    if task.accuracy is None:
        return float("nan")
    data = task.batches if task.held_out is None else task.held_out
    return problem.mean(task.accuracy, problem.masked(keep), data)


def predict(problem: Problem, measured: Measured, checkpoint_dir: Any, **known: Any):
    """Run Lanczos and solve for ρ* and what stands beside it."""
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
        checkpoint_dir=checkpoint_dir,
        on_progress=problem.on_progress,
        **known,
    )


def at_prediction(problem: Problem, estimate: LimitEstimate) -> AtPrediction:
    """Prune by magnitude at ρ*, to see what that does."""
    task, weights = problem.task, problem.weights
    keep = pruning.flat_magnitude_mask(weights, estimate.prediction.num_kept)
    loss = problem.mean(task.loss, problem.masked(keep), task.batches)
    return AtPrediction(float(estimate.prediction.ratio), loss, accuracy_of(problem, keep))


def by_layer(problem: Problem, measured: Measured, found: Found | None) -> Layers:
    """Count what magnitude and the found mask keep of each layer."""
    task, weights = problem.task, problem.weights
    layers = layer_masks(task.params, task.where)
    at = pruning.num_kept(weights.size, measured.by_loss)
    magnitude = np.asarray(pruning.flat_magnitude_mask(weights, at))
    count = lambda keep: np.array([int(keep[mask].sum()) for mask in layers.values()])  # noqa: E731
    return Layers(
        np.array(list(layers)),
        count(np.ones(weights.size, bool)),
        count(magnitude),
        np.full(len(layers), -1) if found is None else count(np.asarray(found.mask, bool)),
    )


def limits_by_layer(problem: Problem, measured: Measured) -> LayerLimits:
    """Run Lanczos on the block of each layer, and share ε out among them."""
    task = problem.task
    result = layer_limits(
        *problem.args,
        *task.operands,
        epsilon=measured.epsilon,
        key=problem.key,
        where=task.where,
        num_steps=problem.settings.num_layer_steps,
        on_progress=lambda done, total: problem.on_progress("layers", done, total),
    )
    found = result.limits.limits
    return LayerLimits(np.array(list(found)), np.array([int(x.num_kept) for x in found.values()]))


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
