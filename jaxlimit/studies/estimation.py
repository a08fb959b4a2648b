"""The prediction in one call: loss, trained weights and data in, pruning limit and doubts out."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit import limits, pruning, spectrum
from jaxlimit._core.batches import first_batch
from jaxlimit._core.checkpoints import check_directory
from jaxlimit._core.checks import check_count, check_key, check_keywords, check_known, check_range
from jaxlimit._core.estimate import Estimate, exact_estimate
from jaxlimit._core.losses import mean_loss
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, describe_selection, flatten_weights, is_weight
from jaxlimit.limits import KeyFactors, PruningLimit, Sensitivity
from jaxlimit.limits.bounds import check_measure
from jaxlimit.limits.tolerance import examine, measure_tolerance, split_epsilon
from jaxlimit.spectrum import SpectralMeasure
from jaxlimit.studies._reasons import reasons_of
from jaxlimit.studies._runs import PlannedRuns

Progress = Callable[[str, int, int], None]


class LimitEstimate(NamedTuple):
    """Everything that the theory says about one trained network.

    Attributes:
        dim: D, the number of weights under study.
        epsilon: ε, the tolerated rise of the loss.
        epsilon_error: its standard error, 0 where ε was given as a number.
        prediction: ρ* as published, with |λ|.
        clipped: the same with max(λ, 0).
        corrected: the threshold of random subspaces perpendicular to their offset, with |λ|.
        upper_bound: ρ_U at the prediction, from the Hessian of the removed weights.
        gap: Δ = ρ_U - ρ_L there. Its interval, and that of ρ_U, only include the errors of the run
            on the removed weights; ρ* and ε count as exact.
        trace_bound: upper bound of ρ_L by tr|H| at the prediction.
        sensitivity: how the prediction changes with ε and with the weights.
        factors: weight magnitude and flatness at the prediction.
        largest: the largest eigenvalue (Ritz value) of H.
        smallest: the smallest, negative where H is indefinite.
        near_zero: greatest possible share of the spectrum with |λ| < c = 2ε/R², by the rule with a
            node at 0; these directions count as flat.
        measure: spectrum of H.
        removed_measure: spectrum of H on the removed weights; None if all are removed, or only
            zeros.
        studied: which parameters are under study and which are not, in one line.
        reasons: sentences on what makes the interval wide or the theory doubtful here.
    """

    dim: int
    epsilon: Float[Array, ""]
    epsilon_error: Float[Array, ""]
    prediction: PruningLimit
    clipped: PruningLimit
    corrected: PruningLimit
    upper_bound: Estimate
    gap: Estimate
    trace_bound: Float[Array, ""]
    sensitivity: Sensitivity
    factors: KeyFactors
    largest: Float[Array, ""]
    smallest: Float[Array, ""]
    near_zero: Float[Array, ""]
    measure: SpectralMeasure
    removed_measure: SpectralMeasure | None
    studied: str
    reasons: tuple[str, ...]

    def __repr__(self) -> str:
        """Show the numbers, one a line, and the reasons to doubt them."""
        error = f" ± {float(self.epsilon_error):.2g}" if float(self.epsilon_error) else ""
        p = self.prediction
        return "\n".join(
            [
                f"LimitEstimate: {self.studied}",
                f"  ε      {float(self.epsilon):.4g}{error}",
                f"  ρ*     {_percent(p.ratio)} [{_percent(p.lower)}, {_percent(p.upper)}], as "
                f"published: {int(p.num_kept):,} weights kept",
                f"  also   {_percent(self.clipped.ratio)} clipped, "
                f"{_percent(self.corrected.ratio)} corrected; Δ {_percent(self.gap.value)}, "
                f"upper bound {_percent(self.upper_bound.value)}",
                f"  λ      {float(self.smallest):.3g} to {float(self.largest):.3g}; up to "
                f"{float(self.near_zero):.1%} of the spectrum below c = 2ε/R²",
                *(f"  note: {reason}" for reason in self.reasons),
            ]
        )


def _percent(ratio: Any) -> str:
    return f"{100 * float(ratio):.3g} %"


class LimitSettings(TypedDict, total=False):
    """Keyword settings of `estimate_limit`, for its runs and for the product.

    Attributes:
        num_steps: Lanczos steps a probe, at most (default 256).
        num_probes: probes (default 1).
        num_gap_steps: Lanczos steps a probe on the removed weights, at most (default 128).
        tolerance: stop at 128, 256, 512, … steps if the interval is at most this share of ρ*
            (default 0.1); 0 takes all steps.
        memory: bytes of the device to use; by default all of it. The form of the product and the
            place of the Lanczos basis are planned for it (`planning.plan`), and planned again,
            once, if the device runs out of memory all the same; the steps done until then are kept.
        on_progress: called as `on_progress(stage, steps_done, steps)`.
        checkpoint_dir: folder for the checkpoints of the two runs; see `spectrum.run_probes`.
        checkpoint_every: steps a probe between checkpoints (default 64).
        mode: as in `curvature.MatvecSettings`.
        memory_budget: as in `curvature.MatvecSettings`.
        product_dtype: as in `curvature.MatvecSettings`.
        shard_params: as in `curvature.MatvecSettings`.
    """

    num_steps: int
    num_probes: int
    num_gap_steps: int
    tolerance: float
    memory: float | None
    on_progress: Progress | None
    checkpoint_dir: str | os.PathLike | None
    checkpoint_every: int
    mode: str
    memory_budget: float
    product_dtype: Any
    shard_params: bool


_DEFAULTS: dict[str, Any] = {
    "num_steps": 256,
    "num_probes": 1,
    "num_gap_steps": 128,
    "tolerance": 0.1,
    "memory": None,
    "on_progress": None,
    "checkpoint_dir": None,
    "checkpoint_every": 64,
}


@takes_mesh
def estimate_limit(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    key: PRNGKeyArray,
    epsilon: Any = None,
    where: Where = is_weight,
    measure: SpectralMeasure | None = None,
    removed_measure: SpectralMeasure | None = None,
    mesh: Mesh | None = None,
    **settings: Unpack[LimitSettings],
) -> LimitEstimate:
    """Predict how sparse a trained network can be pruned.

    Measures ε, runs Lanczos on the Hessian of the mean loss, solves for the published and the
    corrected limit, and runs Lanczos again on the removed weights for the gap. Costs
    num_probes · (num_steps + num_gap_steps) products, each about two gradients over the data.

    Args:
        loss: `loss(params, batch, *operands)`, the mean data loss over the batch's examples in
            evaluation mode, without penalties; or their losses, [n]; or their losses and weights, a
            pair of arrays [n, ...], for Σwl/Σw over all data.
        params: w*, a pytree of real floating arrays. `loss` is handed their own types; the vectors
            of the recurrence are float32 at least.
        batches: a pytree with leaves [num_batches, batch, ...], or a list of batches.
        *operands: passed on to `loss`, such as BatchNorm statistics.
        key: random key of the probes.
        epsilon: ε, a number or an `Estimate`; by default measured by `limits.loss_tolerance` on
            `batches`.
        where: which leaves are weights under study.
        measure: the spectrum of H, if known; saves the first run.
        removed_measure: that of H on the removed weights; used if its dimension is right.
        mesh: devices that share examples and vectors, a `jax.sharding.Mesh`; see
            `curvature.MatvecSettings` and `lanczos.tridiagonalize`.
        **settings: see `LimitSettings`.

    Returns:
        A `LimitEstimate`. Where the loss is no mean over independent examples, its reasons say so,
        and ε and H are those of the batches as given.

    Raises:
        TypeError: if a setting is unknown, `loss` returns none of the three, a leaf of `params` is
            not real floating, or a `mask` is given: the limit is that of whole leaves, selected by
            `where`.
        ValueError: for empty data, non-finite parameters, negative ε, a count below 1, a measure of
            another dimension, or a loss that is not deterministic (dropout left on), is a sum over
            a batch's examples, or is no mean over them where a mesh cuts batches.
        FloatingPointError: if a loss or a product is not finite.
        MemoryError: if nothing fits, by the plan or twice on the device; says what would help.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 8)) * jnp.array([9.0, 9.0] + 6 * [0.01])
    >>> loss = lambda w, batch: 0.5 * jnp.mean((batch @ (w - jnp.arange(8.0))) ** 2)
    >>> estimate = estimate_limit(loss, jnp.arange(8.0), x, key=jax.random.key(0), epsilon=0.1)
    >>> estimate.prediction.num_kept
    Array(2, dtype=int32)
    """
    check_key("key", key)
    check_known("estimate_limit", key=key, params=params)
    if "mask" in settings:
        raise TypeError("mask is no argument of estimate_limit: select whole leaves by where=")
    weights, _ = flatten_weights(params, where)
    check_keywords("estimate_limit", settings, LimitSettings.__annotations__)
    chosen, product = _split_settings(settings)
    check_deterministic(loss, params, batches, *operands)
    loss, operands = mean_loss(loss, params, batches, operands)
    _check_known(weights.size, epsilon, measure, removed_measure)
    if epsilon is None:
        epsilon, doubt = measure_tolerance(loss, params, batches, *operands, mesh=mesh)
    else:
        doubt = examine(loss, params, batches, *operands, mesh=mesh)
    planned = PlannedRuns(
        (loss, params, batches, operands, where, product | {"mesh": mesh}),
        {name: chosen[name] for name in ("num_steps", "num_probes", "memory")},
        cuttable=doubt is None,
    )
    key, removed_key = jax.random.split(key)
    how = {"num_probes": chosen["num_probes"]}
    if measure is None:

        def is_closed(measure):
            limit = limits.pruning_limit(measure, weights, epsilon)
            return bool(limit.upper - limit.lower <= chosen["tolerance"] * limit.ratio)

        monitor = _monitor(chosen, "spectrum", is_closed if chosen["tolerance"] else None)
        how |= {"dim": weights.size, "num_steps": chosen["num_steps"]}
        measure = planned.run(key, monitor=monitor, **how)
    prediction = limits.pruning_limit(measure, weights, epsilon)
    num_removed = weights.size - int(prediction.num_kept)
    if prediction.num_kept == 0 or prediction.radius == 0:
        removed_measure = None
    elif removed_measure is None or removed_measure.dim != num_removed:
        removed = ~np.asarray(pruning.flat_magnitude_mask(weights, prediction.num_kept))
        how |= {"dim": num_removed, "num_steps": chosen["num_gap_steps"]}
        monitor = _monitor(chosen, "removed weights")
        removed_measure = planned.run(removed_key, removed, monitor=monitor, **how)
    report = _report(measure, removed_measure, weights, epsilon, prediction)
    doubts = [doubt] if doubt else []
    return report._replace(
        studied=describe_selection(params, where),
        reasons=(*doubts, *report.reasons, *planned.notes),
    )


def _monitor(chosen: dict[str, Any], stage: str, stop: Any = None) -> spectrum.Monitor:
    folder = chosen["checkpoint_dir"]
    folder = folder and Path(folder) / stage.replace(" ", "-")
    watch = {name: chosen[name] for name in ("on_progress", "checkpoint_every")}
    return spectrum.Monitor(stop=stop, stage=stage, checkpoint_dir=folder, **watch)


def _split_settings(settings: LimitSettings) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the checked settings of the runs, and those of the product."""
    chosen = {**_DEFAULTS, **{k: v for k, v in settings.items() if k in _DEFAULTS}}
    product = {k: v for k, v in settings.items() if k not in _DEFAULTS}
    for name in ("num_steps", "num_probes", "num_gap_steps", "checkpoint_every"):
        check_count(name, chosen[name])
    check_directory(chosen["checkpoint_dir"])
    check_range("tolerance", chosen["tolerance"], 0)
    if chosen["memory"] is not None:
        check_range("memory", chosen["memory"], 0, open_low=True)
    if chosen["on_progress"] is not None and not callable(chosen["on_progress"]):
        raise TypeError(f"on_progress must be callable, got {chosen['on_progress']!r}")
    return chosen, product


def _check_known(dim: int, epsilon: Any, measure: Any, removed_measure: Any) -> None:
    """Check what is given in place of a measurement."""
    if epsilon is not None:
        split_epsilon(epsilon)
    if removed_measure is not None:
        check_measure("removed_measure", removed_measure)
    if measure is None:
        return
    check_measure("measure", measure)
    if measure.dim != dim:
        raise ValueError(
            f"weights must have as many entries as the measure's operator, {measure.dim}, got {dim}"
        )


def check_deterministic(loss: Callable, params: Any, batches: Any, *operands: Any) -> None:
    """Raise unless the loss of the first batch is finite and the same in two evaluations.

    Args:
        loss: see `estimate_limit`.
        params: see `estimate_limit`.
        batches: see `estimate_limit`.
        *operands: passed on to `loss`.

    Raises:
        FloatingPointError: if the loss is not finite.
        ValueError: if two evaluations differ.

    >>> import jax.numpy as jnp
    >>> check_deterministic(lambda w, x: jnp.mean(x @ w), jnp.ones(2), jnp.ones((1, 3, 2)))
    """
    batch = first_batch(batches)
    mean_loss(loss, params, batches, operands)
    first, second = (jax.tree.leaves(loss(params, batch, *operands)) for _ in range(2))
    for once, again in zip(first, second, strict=True):
        if not bool(jnp.isfinite(once).all()):
            raise FloatingPointError(f"loss must be finite, got {once} on the first batch")
        if not bool((once == again).all()):
            raise ValueError(
                f"loss must be deterministic, got {once} and then {again} on the same batch "
                "(dropout or another random layer left in training mode?)"
            )


def _report(measure, removed_measure, weights, epsilon, prediction) -> LimitEstimate:
    value, error = split_epsilon(epsilon)
    at = (prediction.radius, value)
    if removed_measure is None:
        # Nothing kept, or nothing but zeros removed: the bounds coincide.
        gap, bound = Estimate(*[jnp.zeros(())] * 4), exact_estimate(prediction.ratio)
    else:
        gap = limits.gap(removed_measure, *at, dim=measure.dim)
        bound = limits.upper_bound(removed_measure, *at, dim=measure.dim)
    factors = limits.key_factors(measure, weights, value, limit=prediction)
    report = LimitEstimate(
        dim=measure.dim,
        epsilon=jnp.asarray(value),
        epsilon_error=jnp.asarray(error),
        prediction=prediction,
        clipped=limits.pruning_limit(measure, weights, epsilon, negative="clip"),
        corrected=limits.random_subspace_threshold(measure, weights, epsilon),
        upper_bound=bound,
        gap=gap,
        trace_bound=factors.bound,
        sensitivity=limits.sensitivity(measure, prediction, value),
        factors=factors,
        largest=measure.nodes.max(),
        smallest=measure.nodes.min(),
        near_zero=_mass_below(measure, limits.ridge(*at)),
        measure=measure,
        removed_measure=removed_measure,
        studied="",
        reasons=(),
    )
    return report._replace(reasons=reasons_of(report))


def _mass_below(measure: SpectralMeasure, c: Any) -> Float[Array, ""]:
    pinned = measure if measure.recurrence is None else spectrum.pinned_measure(measure, 0.0)
    return spectrum.trace_function(pinned, lambda x: (jnp.abs(x) < c).astype(x.dtype)).value
