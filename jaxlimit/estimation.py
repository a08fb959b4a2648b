"""The whole chain in one call: loss, trained weights and data in, pruning limit and reasons out."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlimit import curvature, limits, pruning, spectrum
from jaxlimit._batches import check_scalar, first_batch
from jaxlimit._checks import check_count, check_range
from jaxlimit._estimate import Estimate
from jaxlimit._weights import Where, flatten_weights, is_weight
from jaxlimit.limits import PruningLimit
from jaxlimit.spectrum import SpectralMeasure

Progress = Callable[[str, int, int], None]


class LimitEstimate(NamedTuple):
    """Everything that the theory says of one trained network.

    Attributes:
        dim: D, the number of weights under study.
        epsilon: ε, the tolerated rise of the loss.
        prediction: ρ* as published, with |λ|.
        clipped: the same with max(λ, 0).
        corrected: the threshold of random subspaces perpendicular to their offset, with |λ|.
        gap: Δ at the prediction, from the Hessian of the removed weights.
        trace_bound: the bound of ρ_L by tr|H| at the prediction.
        largest: the largest eigenvalue (Ritz value) of H.
        smallest: the smallest, negative where H is indefinite.
        near_zero: greatest share of the spectrum that can have |λ| < c = 2ε/R², flat at the scale
            that matters, by the rule with a node at 0.
        measure: spectrum of H.
        removed_measure: spectrum of H on the removed weights; None if none are or all.
        reasons: what makes the interval wide or the theory doubtful here, in words.
    """

    dim: int
    epsilon: Float[Array, ""]
    prediction: PruningLimit
    clipped: PruningLimit
    corrected: PruningLimit
    gap: Estimate
    trace_bound: Float[Array, ""]
    largest: Float[Array, ""]
    smallest: Float[Array, ""]
    near_zero: Float[Array, ""]
    measure: SpectralMeasure
    removed_measure: SpectralMeasure | None
    reasons: tuple[str, ...]


def estimate_limit(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    key: PRNGKeyArray,
    epsilon: Any = None,
    num_steps: int = 128,
    num_probes: int = 1,
    tolerance: float = 0.0,
    where: Where = is_weight,
    measure: SpectralMeasure | None = None,
    removed_measure: SpectralMeasure | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> LimitEstimate:
    """Predict how sparse a trained network can be pruned.

    Measures ε, runs Lanczos on the Hessian of the mean loss, solves for the published and the
    corrected limit, and runs Lanczos again on the removed weights for the gap. Costs the two runs'
    products, 2 · num_probes · num_steps, each about two gradients over the data.

    Args:
        loss: `loss(params, batch, *operands)`, the mean data loss over the batch's examples in
            evaluation mode, without penalties.
        params: w*, a pytree of real floating arrays.
        batches: a pytree with leaves [num_batches, batch, ...], or a list of batches.
        *operands: passed on to `loss`, such as BatchNorm statistics.
        key: random key of the probes.
        epsilon: ε; measured by `limits.loss_tolerance` if not given.
        num_steps: Lanczos steps a probe, at most.
        num_probes: probes.
        tolerance: stop as soon as the interval is at most this share of ρ*; 0 takes all steps.
        where: which leaves are weights under study.
        measure: the spectrum of H, if it is known already; saves the first run.
        removed_measure: that of H on the removed weights, likewise; taken if its dimension fits.
        on_progress: called as `on_progress(stage, steps_done, steps)`.
        **settings: further settings of `curvature.hessian_matvec`.

    Returns:
        A `LimitEstimate`.

    Raises:
        TypeError: if `loss` gives no scalar or a leaf of `params` is not real floating.
        ValueError: for empty data, non-finite parameters, negative ε, a count below 1, or a loss
            that gives another value the second time (dropout left on).
        FloatingPointError: if a loss or a product is not finite.

    >>> import jax, jax.numpy as jnp
    >>> x = jax.random.normal(jax.random.key(1), (1, 64, 8)) * jnp.array([9.0, 9.0] + 6 * [0.01])
    >>> loss = lambda w, batch: 0.5 * jnp.mean((batch @ (w - jnp.arange(8.0))) ** 2)
    >>> estimate = estimate_limit(loss, jnp.arange(8.0), x, key=jax.random.key(0), epsilon=0.1)
    >>> estimate.prediction.num_kept
    Array(2, dtype=int32)
    """
    check_count("num_steps", num_steps)
    check_count("num_probes", num_probes)
    check_range("tolerance", tolerance, 0)
    if epsilon is not None:
        check_range("epsilon", epsilon, 0)
    check_deterministic(loss, params, batches, *operands)
    if epsilon is None:
        epsilon = limits.loss_tolerance(loss, params, batches, *operands)
    weights, _ = flatten_weights(params, where)
    matvec = curvature.hessian_matvec(loss, params, batches, *operands, where=where, **settings)
    run = partial(
        spectrum.run_probes, num_steps=num_steps, num_probes=num_probes, on_progress=on_progress
    )
    key, removed_key = jax.random.split(key)
    if measure is None:

        def is_closed(measure):
            limit = limits.pruning_limit(measure, weights, epsilon)
            return bool(limit.upper - limit.lower <= tolerance * limit.ratio)

        measure = run(
            matvec, key, dim=weights.size, stop=is_closed if tolerance else None, stage="spectrum"
        )
    prediction = limits.pruning_limit(measure, weights, epsilon)
    kept = np.asarray(pruning.flat_magnitude_mask(weights, prediction.num_kept))
    removed_measure = None
    if (~kept).sum() > 0 and prediction.radius > 0:
        restricted = curvature.restrict(matvec, ~kept)
        depth = {"num_steps": measure.nodes.shape[-1]}
        removed_measure = run(
            restricted, removed_key, dim=int((~kept).sum()), stage="removed weights", **depth
        )
    return _report(measure, removed_measure, weights, epsilon, prediction)


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
    c = limits.ridge(prediction.radius, epsilon)
    size = spectrum.trace_function(measure, jnp.abs).value * measure.dim
    if removed_measure is None:
        gap = Estimate(*[jnp.zeros(())] * 4)
    else:
        gap = limits.gap(removed_measure, prediction.radius, epsilon, dim=measure.dim)
    report = LimitEstimate(
        dim=measure.dim,
        epsilon=jnp.asarray(epsilon),
        prediction=prediction,
        clipped=limits.pruning_limit(measure, weights, epsilon, negative="clip"),
        corrected=limits.random_subspace_threshold(measure, weights, epsilon),
        gap=gap,
        trace_bound=limits.trace_bound(size, prediction.radius, epsilon, dim=measure.dim),
        largest=measure.nodes.max(),
        smallest=measure.nodes.min(),
        near_zero=_mass_below(measure, c),
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
    p, reasons = report.prediction, []
    ratio = float(p.ratio)
    if ratio == 0:
        reasons.append("the prediction is 0: all weights may go within ε, or the Hessian vanishes")
        return tuple(reasons)
    width = float(p.upper - p.lower) / ratio
    probes = 2 * 1.96 * float(p.standard_error) / ratio
    if width > 0.1:
        part = "the probes" if probes > width / 2 else "the Lanczos depth"
        cure = "num_probes" if probes > width / 2 else "num_steps"
        reasons.append(f"the interval is {width:.0%} of ρ*, most of it from {part}: raise {cure}")
    spread = abs(ratio - float(report.clipped.ratio)) / ratio
    if spread > 0.1:
        reasons.append(
            f"{spread:.0%} of ρ* rests on negative curvature (|λ| against clipped): the weights "
            "are not at a minimum of the loss in all directions"
        )
    corrected = float(report.corrected.ratio) / ratio
    if not 0.9 < corrected < 1.1:
        reasons.append(
            f"the random-subspace threshold is {corrected:.2f} times the published bound: the "
            "width theory is not exact on this spectrum"
        )
    return tuple(reasons)
