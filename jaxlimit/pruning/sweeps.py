"""Sweeps of a loss over the pruning ratio, the empirical limit that they show, and a forecast.

Ratios are fractions of weights *kept*, by magnitude over all layers at once; see
`jaxlimit.pruning.magnitude`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from jaxlimit._core import magnitudes, scale, sharding, shares
from jaxlimit._core.checks import (
    as_array,
    check_floating_tree,
    check_range,
    check_real,
    check_type,
)
from jaxlimit._core.estimate import value_of
from jaxlimit._core.losses import mean_loss
from jaxlimit._core.memory import catching_refusals
from jaxlimit._core.operator import prepare
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.summaries import short_repr
from jaxlimit._core.weights import Where, flat_vectors, flatten_weights, is_weight
from jaxlimit.limits.tolerance import check_mean
from jaxlimit.pruning.magnitude import num_kept

_MAX_PIECE = 20


class SweepResult(NamedTuple):
    """A loss over pruning ratios, in the order asked for.

    Attributes:
        ratios: fractions of weights kept.
        losses: mean loss of the pruned network over all examples.
        num_kept: ⌊ratio · D + ½⌋.
        radii: norm of what is removed.
        kept_norms: l1 norm of what is kept.
    """

    ratios: Float[Array, "r"]
    losses: Float[Array, "r"]
    num_kept: Int[Array, "r"]
    radii: Float[Array, "r"]
    kept_norms: Float[Array, "r"]

    __repr__ = short_repr


@takes_mesh
def magnitude_sweep(
    loss: Callable,
    params: Any,
    batches: Any,
    ratios: Any,
    *operands: Any,
    where: Where = is_weight,
    on_progress: Callable[[str, int, int], None] | None = None,
    stage: str = "sweep",
    mesh: Mesh | None = None,
) -> SweepResult:
    """Measure a loss, or any mean over examples, at many pruning ratios.

    L(w^k) for k = ⌊ρD + ½⌋, one compiled program for all ratios. Costs one evaluation a ratio, one
    sort of the weights, and two evaluations of the first batches to check that the loss is a mean
    over examples; memory of the ranks and one pruned copy.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples; or their losses,
            [n]; or their losses and weights, a pair of arrays [n, ...].
        params: pytree of real floating arrays.
        batches: a pytree with leaves [num_batches, batch, ...], or a list of batches.
        ratios: fractions kept [r], each in [0, 1].
        *operands: passed on to `loss`.
        where: which leaves are under study; the others stay.
        on_progress: called as `on_progress(stage, ratios_done, ratios)` after every few ratios.
        stage: a name for `on_progress`.
        mesh: devices to share the examples, along the first axis of a `jax.sharding.Mesh`; each has
            all weights.

    Returns:
        A `SweepResult`. Where the loss is no mean over independent examples, it is the mean over
        the batches as given; a warning says so.

    Raises:
        TypeError: if `loss` returns none of the three.
        ValueError: if a ratio lies outside [0, 1], there are no ratios or no data, or the loss is a
            sum over a batch's examples, or no mean over them where a mesh cuts batches.
        MemoryError: a `planning.DeviceMemoryError` if the device runs out of memory.

    >>> import jax.numpy as jnp
    >>> sweep = magnitude_sweep(
    ...     lambda w, x: jnp.mean((x - w) ** 2), jnp.array([1.0, 2.0]),
    ...     jnp.array([[[1.0, 2.0]]]), [0.0, 0.5, 1.0])
    >>> sweep.losses
    Array([2.5, 0.5, 0. ], dtype=float32)
    """
    ratios = _check_ratios(ratios)
    loss, operands = mean_loss(loss, params, batches, operands)
    check_mean(loss, params, batches, *operands, mesh=mesh)
    weights, unflatten = flatten_weights(params, where)
    examples = shares.examples_of(batches, mesh)
    arrays = (weights, magnitudes.ranks(weights), unflatten, operands)
    weights, ranks, unflatten, operands = sharding.replicate(arrays, mesh)
    # Pieces of one size share one program, and progress is reported between them.
    num_pieces = -(-ratios.size // _MAX_PIECE)
    size = -(-ratios.size // num_pieces)
    padded = jnp.pad(ratios, (0, num_pieces * size - ratios.size)).reshape(num_pieces, size)
    pieces = []
    for i, piece in enumerate(padded, start=1):
        args = (loss, weights, ranks, unflatten, examples, piece, operands)
        with catching_refusals("in a sweep over pruning ratios: make batches smaller"):
            pieces.append(jax.block_until_ready(_sweep(*args)))
        if on_progress is not None:
            on_progress(stage, min(i * size, ratios.size), ratios.size)
    pieces = sharding.local(pieces, mesh)
    return jax.tree.map(lambda *x: jnp.concatenate(x)[: ratios.size], *pieces)


def _check_ratios(ratios: Any) -> Float[Array, "r"]:
    ratios = jnp.atleast_1d(as_array("ratios", ratios).astype(jnp.float32))
    if ratios.ndim != 1 or not ratios.size:
        raise ValueError(f"ratios must be a non-empty vector, got shape {ratios.shape}")
    check_range("ratios", ratios, 0, 1)
    return ratios


@partial(jax.jit, static_argnums=0)
def _sweep(loss, weights, ranks, unflatten, examples, ratios, operands) -> SweepResult:
    wide = scale.wide_type(weights.dtype)

    def of_batch(batch, unflatten, pruned, operands):
        value = loss(unflatten(pruned), batch, *operands)
        return value.astype(scale.wide_type(value.dtype))

    def at(ratio):
        kept = num_kept(weights.size, ratio)
        pruned = jnp.where(ranks < kept, weights, 0)
        value = shares.mean(examples, of_batch, unflatten, pruned, operands)
        radius = scale.norm(jnp.where(ranks < kept, 0, weights))
        return SweepResult(ratio, value, kept, radius, jnp.sum(jnp.abs(pruned), dtype=wide))

    return jax.lax.map(at, ratios)


def empirical_limit(
    sweep: SweepResult, dense_loss: Any, epsilon: Any, *, interpolate: bool = False
) -> Float[Array, ""]:
    """Find the empirical limit in a sweep.

    The smallest ρ of the sweep with L(w^k) ≤ L(w*) + ε at it and at every larger ρ of the sweep;
    1 if not even the largest passes. For an accuracy, pass its negative and a tolerance.

    Args:
        sweep: from `magnitude_sweep`.
        dense_loss: L(w*).
        epsilon: ε, tolerated increase, at least 0.
        interpolate: for a smooth curve, such as a forecast, return where the line from that ratio
            to the next smaller one of the sweep reaches L(w*) + ε.

    Returns:
        The ratio.

    Raises:
        TypeError: if `sweep` is no `SweepResult`.
        ValueError: if `epsilon` is negative or NaN, or `dense_loss` is not finite.

    >>> import jax.numpy as jnp
    >>> sweep = SweepResult(jnp.array([0.1, 0.2, 0.4, 1.0]), jnp.array([0.5, 3.0, 0.9, 1.0]),
    ...                     *[jnp.zeros(4)] * 3)
    >>> empirical_limit(sweep, 0.9, 0.2)
    Array(0.4, dtype=float32)
    >>> empirical_limit(sweep, 0.9, 0.2, interpolate=True).round(3)
    Array(0.381, dtype=float32)
    """
    check_type("sweep", sweep, SweepResult)
    epsilon, dense_loss = value_of(epsilon), value_of(dense_loss)
    check_range("epsilon", epsilon, 0)
    check_real("dense_loss", dense_loss)
    check_floating_tree("dense_loss", jnp.asarray(dense_loss, jnp.result_type(float)))
    passes = jnp.isfinite(sweep.losses) & (sweep.losses <= dense_loss + epsilon)
    worst = jnp.max(sweep.ratios, where=~passes, initial=-jnp.inf)
    limit = jnp.min(sweep.ratios, where=sweep.ratios > worst, initial=1.0)
    if not interpolate:
        return limit
    low, high = (sweep.losses[jnp.argmax(sweep.ratios == ratio)] for ratio in (worst, limit))
    share = (low - dense_loss - epsilon) / (low - high)
    between = jnp.isfinite(worst) & jnp.isfinite(share) & (limit > worst)
    known = between & jnp.any(sweep.ratios == limit)
    return jnp.where(known, worst + share * (limit - worst), limit)


def taylor_forecast(
    gradient: Float[Array, "D"],
    matvec: Any,
    weights: Float[Array, "D"],
    ratios: Any,
) -> Float[Array, "r"]:
    """Forecast the rise in loss by pruning from the second-order Taylor expansion at w*.

    ΔL ≈ gᵀδ + ½ δᵀHδ with δ = w^k - w*, the change by pruning. Costs one product a ratio. This is
    the baseline for a prediction from the spectrum alone.

    Args:
        gradient: g, of the data loss at the weights under study.
        matvec: H, as from `curvature.hessian_matvec`.
        weights: w* under study.
        ratios: fractions kept [r], each in [0, 1].

    Returns:
        ΔL at each ratio [r].

    Raises:
        TypeError: if a vector is no real array.
        ValueError: if a ratio lies outside [0, 1], the shapes differ, or something is not finite.

    >>> import jax.numpy as jnp
    >>> taylor_forecast(jnp.zeros(2), lambda v: 2 * v, jnp.array([1.0, 3.0]), [0.5])
    Array([1.], dtype=float32)
    """
    ratios = _check_ratios(ratios)
    gradient, weights = flat_vectors(gradient=gradient, weights=weights)
    ranks = magnitudes.ranks(weights)
    operator = prepare(matvec, weights.size, weights.dtype)
    with sharding.on(operator.mesh):
        forecast = _taylor(operator, gradient, weights, ranks, ratios)
    return sharding.local(forecast, operator.mesh)


@jax.jit
def _taylor(matvec, gradient, weights, ranks, ratios):
    def at(ratio):
        step = jnp.where(ranks < num_kept(weights.size, ratio), 0, -weights)
        return _dot(gradient, step) + _dot(step, matvec(step)) / 2

    return jax.lax.map(at, ratios)


def _dot(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, preferred_element_type=scale.wide_type(jnp.result_type(a, b)))
