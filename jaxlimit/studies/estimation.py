"""The whole chain in one call: loss, trained weights and data in, pruning limit and reasons out."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit import curvature, limits, planning, pruning, spectrum
from jaxlimit._core.batches import check_scalar, cut_batches, first_batch
from jaxlimit._core.checkpoints import check_directory
from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.estimate import Estimate, exact_estimate
from jaxlimit._core.memory import DeviceMemoryError, catching_refusals
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.limits import KeyFactors, PruningLimit, Sensitivity
from jaxlimit.limits.tolerance import split_epsilon
from jaxlimit.spectrum import SpectralMeasure

Progress = Callable[[str, int, int], None]


class LimitEstimate(NamedTuple):
    """Everything that the theory says of one trained network.

    Attributes:
        dim: D, the number of weights under study.
        epsilon: ε, the tolerated rise of the loss.
        epsilon_error: its standard error, 0 where ε was given as a number.
        prediction: ρ* as published, with |λ|.
        clipped: the same with max(λ, 0).
        corrected: the threshold of random subspaces perpendicular to their offset, with |λ|.
        upper_bound: ρ_U at the prediction, from the Hessian of the removed weights.
        gap: Δ = ρ_U - ρ_L there. Its interval and that of ρ_U are those of the run on the removed
            weights alone, at ρ* and ε as they are.
        trace_bound: the bound of ρ_L by tr|H| at the prediction.
        sensitivity: what the prediction makes of a change of ε or of the weights.
        factors: weight magnitude and flatness at the prediction.
        largest: the largest eigenvalue (Ritz value) of H.
        smallest: the smallest, negative where H is indefinite.
        near_zero: greatest share of the spectrum that can have |λ| < c = 2ε/R², flat at the scale
            that matters, by the rule with a node at 0.
        measure: spectrum of H.
        removed_measure: spectrum of H on the removed weights; None if all are
            removed, or only zeros.
        reasons: what makes the interval wide or the theory doubtful here, in words.
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
    reasons: tuple[str, ...]


@takes_mesh
def estimate_limit(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    key: PRNGKeyArray,
    epsilon: Any = None,
    num_steps: int = 256,
    num_probes: int = 1,
    num_gap_steps: int = 128,
    tolerance: float = 0.1,
    where: Where = is_weight,
    measure: SpectralMeasure | None = None,
    removed_measure: SpectralMeasure | None = None,
    memory: float | None = None,
    on_progress: Progress | None = None,
    mesh: Mesh | None = None,
    checkpoint_dir: str | os.PathLike | None = None,
    checkpoint_every: int = 64,
    **settings: Any,
) -> LimitEstimate:
    """Predict how sparse a trained network can be pruned.

    Measures ε, runs Lanczos on the Hessian of the mean loss, solves for the published and the
    corrected limit, and runs Lanczos again on the removed weights for the gap. Costs the two runs'
    products, num_probes · (num_steps + num_gap_steps), each about two gradients over the data.

    Args:
        loss: `loss(params, batch, *operands)`, the mean data loss over the batch's examples in
            evaluation mode, without penalties.
        params: w*, a pytree of real floating arrays; leaves narrower than float32 are taken to it,
            which a Lanczos recurrence needs.
        batches: a pytree with leaves [num_batches, batch, ...], or a list of batches.
        *operands: passed on to `loss`, such as BatchNorm statistics.
        key: random key of the probes.
        epsilon: ε, a number or an `Estimate`; measured by `limits.loss_tolerance_estimate` on
            `batches` if not given.
        num_steps: Lanczos steps a probe, at most.
        num_probes: probes.
        num_gap_steps: Lanczos steps a probe on the removed weights, at most.
        tolerance: stop at 128, 256, 512, … steps where the interval is at most this share of ρ*; 0
            takes all steps.
        where: which leaves are weights under study.
        measure: the spectrum of H, if it is known already; saves the first run.
        removed_measure: that of H on the removed weights, likewise; taken if its dimension fits.
        memory: bytes of the device, if not all that it has; how the product is made and where the
            Lanczos basis goes is planned for it (`planning.plan`), and planned again, once, where
            the device runs out of memory all the same: the steps done by then are kept.
        on_progress: called as `on_progress(stage, steps_done, steps)`.
        mesh: devices that share examples and vectors, a `jax.sharding.Mesh`; see
            `curvature.MatvecSettings` and `lanczos.tridiagonalize`.
        checkpoint_dir: where the two runs keep their checkpoints, as for `spectrum.run_probes`.
        checkpoint_every: steps a probe between checkpoints, likewise.
        **settings: further settings of `curvature.hessian_matvec`, but for `mask`.

    Returns:
        A `LimitEstimate`.

    Raises:
        TypeError: if `loss` gives no scalar, a leaf of `params` is not real floating, or a `mask`
            is given: a limit is one of whole leaves, which `where` selects.
        ValueError: for empty data, non-finite parameters, negative ε, a count below 1, or a loss
            that gives another value the second time (dropout left on).
        FloatingPointError: if a loss or a product is not finite.
        MemoryError: if nothing fits, by the plan or twice on the device; says what would help.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 8)) * jnp.array([9.0, 9.0] + 6 * [0.01])
    >>> loss = lambda w, batch: 0.5 * jnp.mean((batch @ (w - jnp.arange(8.0))) ** 2)
    >>> estimate = estimate_limit(loss, jnp.arange(8.0), x, key=jax.random.key(0), epsilon=0.1)
    >>> estimate.prediction.num_kept
    Array(2, dtype=int32)
    """
    check_count("num_steps", num_steps)
    check_count("num_probes", num_probes)
    check_count("num_gap_steps", num_gap_steps)
    check_count("checkpoint_every", checkpoint_every)
    check_directory(checkpoint_dir)
    check_range("tolerance", tolerance, 0)
    if settings.pop("mask", None) is not None:
        raise TypeError("mask is no argument of estimate_limit: select whole leaves by where=")
    if epsilon is not None:
        split_epsilon(epsilon)
    flatten_weights(params, where)  # raises where they are none
    params = jax.tree.map(_widen, params)
    check_deterministic(loss, params, batches, *operands)
    if epsilon is None:
        epsilon = limits.loss_tolerance_estimate(loss, params, batches, *operands, mesh=mesh)
    weights, _ = flatten_weights(params, where)
    planned = _PlannedRuns(
        (loss, params, batches, operands, where, settings | {"mesh": mesh}),
        {"num_steps": num_steps, "num_probes": num_probes, "memory": memory},
    )
    watch = {
        "num_probes": num_probes,
        "on_progress": on_progress,
        "checkpoint_every": checkpoint_every,
        "dtype": weights.dtype,
    }

    def run(key, stage="spectrum", **how):
        folder = checkpoint_dir and Path(checkpoint_dir) / stage.replace(" ", "-")
        return planned.run(key, stage=stage, checkpoint_dir=folder, **watch, **how)

    key, removed_key = jax.random.split(key)
    if measure is None:

        def is_closed(measure):
            limit = limits.pruning_limit(measure, weights, epsilon)
            return bool(limit.upper - limit.lower <= tolerance * limit.ratio)

        stop = is_closed if tolerance else None
        measure = run(key, dim=weights.size, num_steps=num_steps, stop=stop)
    prediction = limits.pruning_limit(measure, weights, epsilon)
    num_removed = weights.size - int(prediction.num_kept)
    if prediction.num_kept == 0 or prediction.radius == 0:
        removed_measure = None
    elif removed_measure is None or removed_measure.dim != num_removed:
        removed = ~np.asarray(pruning.flat_magnitude_mask(weights, prediction.num_kept))
        removed_measure = run(
            removed_key,
            mask=removed,
            dim=num_removed,
            num_steps=num_gap_steps,
            stage="removed weights",
        )
    report = _report(measure, removed_measure, weights, epsilon, prediction)
    return report._replace(reasons=(*report.reasons, *planned.notes))


def _widen(leaf: Any) -> Any:
    dtype = jnp.result_type(leaf)
    narrow = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return jnp.asarray(leaf, jnp.float32) if narrow else leaf


class _PlannedRuns:
    """Lanczos on one Hessian as planned, and planned again once the device runs out of memory."""

    def __init__(self, operator: tuple, plan_settings: dict[str, Any]) -> None:
        loss, params, batches, operands, where, settings = operator
        self._operator, self._matvec = operator, cast(Any, None)
        self._workload, ways = planning.prepare(
            loss, params, batches, *operands, where=where, **settings
        )
        self._plan_settings: dict[str, Any] = plan_settings | ways
        self._plan = self._affordable(planning.plan(self._workload, **self._plan_settings))
        self.notes: tuple[str, ...] = ()

    def run(self, key: PRNGKeyArray, mask: Any = None, **how: Any) -> SpectralMeasure:
        """Run the probes, on the principal submatrix where `mask` is True if it is given."""
        states: tuple = ()
        while True:
            try:
                return self._attempt(key, mask, states, how)
            except DeviceMemoryError as error:
                states, refusal = error.states, str(error)
            self._plan_again(refusal, states)

    def _attempt(self, key, mask, states, how) -> SpectralMeasure:
        loss, params, batches, operands, where, settings = self._operator
        with catching_refusals("while the Hessian was linearised", states):
            if self._matvec is None:
                self._matvec = curvature.hessian_matvec(
                    loss,
                    params,
                    cut_batches(batches, self._plan.pieces),
                    *operands,
                    where=where,
                    **settings | {"mode": self._plan.mode},
                )
                jax.block_until_ready(jax.tree.leaves(self._matvec))
        matvec = self._matvec if mask is None else curvature.restrict(self._matvec, mask)
        kept = {"reorthogonalize": self._plan.reorthogonalize, "store": self._plan.store}
        kept["mesh"] = settings["mesh"]
        return spectrum.run_probes(matvec, key, states=states, **kept, **how)

    def _plan_again(self, refusal: str, states: tuple) -> None:
        # The old product has to be gone before a lighter one is made, out of cycles too.
        self._matvec = None
        gc.collect()
        if self.notes:
            raise MemoryError(f"{refusal}; it was planned for twice: {self.notes[0]}")
        settings: dict[str, Any] = self._plan_settings
        if any(int(state.step) for state in states):
            kind, store = self._plan.reorthogonalize, self._plan.store
            settings = settings | {"stores": (store,), "reorthogonalize": kind}
        lighter = planning.lighter(self._plan, self._workload, **settings)
        self._plan = self._affordable(lighter, refusal)
        self.notes = (
            f"the device ran out of memory; the run went on from its last steps {lighter.mode}"
            f"{f', batches cut into {lighter.pieces}' if lighter.pieces > 1 else ''}",
        )

    def _affordable(self, plan: planning.Plan, refusal: str = "") -> planning.Plan:
        if not plan.fits:
            raise MemoryError("; ".join(filter(None, (refusal, *plan.reasons))))
        return plan


def check_deterministic(loss: Callable, params: Any, batches: Any, *operands: Any) -> None:
    """Raise unless the loss of the first batch is finite and the same when asked for twice."""
    batch = first_batch(batches)
    check_scalar(loss, params, batch, *operands)
    first, second = loss(params, batch, *operands), loss(params, batch, *operands)
    if not bool(jnp.isfinite(first)):
        raise FloatingPointError(f"loss must be finite, got {first} on the first batch")
    if not bool(first == second):
        raise ValueError(
            f"loss must be deterministic, got {first} and then {second} on the same batch "
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
        reasons=(),
    )
    return report._replace(reasons=_reasons(report))


def _mass_below(measure: SpectralMeasure, c: Any) -> Float[Array, ""]:
    pinned = measure if measure.diagonal is None else spectrum.pinned_measure(measure, 0.0)
    return spectrum.trace_function(pinned, lambda x: (jnp.abs(x) < c).astype(x.dtype)).value


def _reasons(report: LimitEstimate) -> tuple[str, ...]:
    """Say in words what makes the numbers of a report less than certain."""
    nothing_to_lose = _why_nothing_is_lost(report)
    if nothing_to_lose:
        return (nothing_to_lose,)
    ratio, reasons = float(report.prediction.ratio), _reasons_of_width(report)
    if ratio == 1:
        reasons.append("the prediction is 1: no weight may go within ε")
    spread = ratio - float(report.clipped.ratio)
    if spread > 0.1 * ratio:
        reasons.append(
            f"{spread / ratio:.0%} of ρ* rests on negative curvature (|λ| against clipped): the "
            "weights are not at a minimum of the loss in all directions"
        )
    corrected = float(report.corrected.ratio)
    if report.corrected.num_kept == 0:
        rise = float(report.factors.norm**2 * report.factors.trace) / report.dim / 2
        reasons.append(
            f"ε = {float(report.epsilon):.3g} is so large that all weights may go: a random step "
            f"of the length of w* raises the quadratic loss by {rise:.3g}; the published bound is "
            f"{ratio:.3g} all the same"
        )
    elif abs(corrected - ratio) > 0.1 * ratio:
        reasons.append(
            f"the random-subspace threshold is {corrected / ratio:.2f} times the published bound: "
            "the width theory is not exact on this spectrum"
        )
    return tuple(reasons)


def _why_nothing_is_lost(report: LimitEstimate) -> str | None:
    """Say why no weight matters at all, if that is so."""
    if report.factors.norm == 0:
        return "all weights are 0 already, so that ρ* is 0"
    if report.factors.trace == 0:
        return (
            "the Hessian vanishes, so that ρ* is 0: to second order no weight matters to the loss "
            "(is it linear in the weights, or the network dead?)"
        )
    return None


def _reasons_of_width(report: LimitEstimate) -> list[str]:
    """Name the largest part of an interval wider than a tenth, and what narrows it."""
    p, gap = report.prediction, report.gap
    width, of_gap = float(p.upper - p.lower), float(gap.upper - gap.lower)
    reasons = []
    if of_gap > 0.1 * float(gap.value):
        reasons.append(
            f"the interval of Δ goes from {float(gap.lower):.3g} to {float(gap.upper):.3g}: raise "
            "num_gap_steps"
        )
    if width <= 0.1 * float(p.ratio):
        return reasons
    joint = float(p.standard_error)
    by_epsilon = min(abs(float(report.sensitivity.epsilon * report.epsilon_error)), joint)
    by_probes = (joint**2 - by_epsilon**2) ** 0.5
    parts = {
        "the Lanczos depth: raise num_steps": width - 2 * 1.96 * joint,
        "the probes: raise num_probes": 2 * 1.96 * by_probes,
        "the estimate of ε: measure it on more examples": 2 * 1.96 * by_epsilon,
    }
    part = max(parts, key=lambda name: parts[name])
    return [f"the interval is {width / float(p.ratio):.0%} of ρ*, most of it from {part}", *reasons]
