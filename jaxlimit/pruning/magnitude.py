"""Global one-shot magnitude pruning: masks, sweeps over the ratio, and the empirical limit.

Ratios are fractions of weights *kept*. Everything orders the weights under study by magnitude over
all layers at once; among equal magnitudes the lower flat index is kept.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import magnitudes, sharding
from jaxlimit._core.batches import check_like, check_scalar, first_batch
from jaxlimit._core.checks import check_floating_tree, check_range
from jaxlimit._core.memory import catching_refusals
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected

_MAX_PIECE = 20


class SweepResult(NamedTuple):
    """A loss over pruning ratios, ascending or not, as asked for.

    Attributes:
        ratios: fractions of weights kept.
        losses: mean over all examples of the pruned network's loss.
        num_kept: ⌊ratio · D + ½⌋.
        radii: norm of what is removed.
        kept_norms: l1 norm of what is kept.
    """

    ratios: Float[Array, "r"]
    losses: Float[Array, "r"]
    num_kept: Int[Array, "r"]
    radii: Float[Array, "r"]
    kept_norms: Float[Array, "r"]


def magnitude_mask(params: Any, ratio: Any, *, where: Where = is_weight) -> Any:
    """Mark the weights of greatest magnitude.

    Keeps ⌊ratio · D + ½⌋ of the D weights under study. Costs some 32 passes over them; works
    under `jit` with a traced ratio.

    Args:
        params: pytree of real floating arrays.
        ratio: fraction kept, in [0, 1].
        where: which leaves are under study; the others are marked kept.

    Returns:
        A pytree like `params` of booleans.

    Raises:
        ValueError: if `ratio` lies outside [0, 1], or `params` is not finite or selects nothing.

    >>> import jax.numpy as jnp
    >>> magnitude_mask(jnp.array([0.1, -3.0, 2.0, 2.0]), 0.5)
    Array([False,  True,  True, False], dtype=bool)
    """
    check_range("ratio", ratio, 0, 1)
    weights, unflatten = flatten_weights(params, where)
    keep = magnitudes.keep_largest(weights, num_kept(weights.size, ratio))
    marks = unflatten(keep.astype(weights.dtype))
    return jax.tree.map(
        lambda mark, studied: mark > 0 if studied else jnp.ones_like(mark, bool),
        marks,
        jax.tree.unflatten(jax.tree.structure(marks), selected(params, where)),
    )


def flat_magnitude_mask(weights: Float[Array, "D"], num_kept: Any) -> Bool[Array, "D"]:
    """Mark the `num_kept` entries of greatest magnitude of a flat vector.

    >>> import jax.numpy as jnp
    >>> flat_magnitude_mask(jnp.array([0.1, -3.0, 2.0]), 1)
    Array([False,  True, False], dtype=bool)
    """
    return magnitudes.keep_largest(weights, jnp.asarray(num_kept, jnp.int32))


def apply_mask(params: Any, mask: Any) -> Any:
    """Set to zero what the mask leaves out.

    Raises:
        ValueError: if `mask` has another structure or other shapes than `params`.

    >>> import jax.numpy as jnp
    >>> apply_mask(jnp.array([1.0, 2.0]), jnp.array([True, False]))
    Array([1., 0.], dtype=float32)
    """
    check_like("mask", mask, params)
    return jax.tree.map(lambda leaf, keep: jnp.where(keep, leaf, 0), params, mask)


def removed_norm(params: Any, ratio: Any, *, where: Where = is_weight) -> Float[Array, ""]:
    """Norm of the weights that magnitude pruning removes: R(ρ) = ‖w* - w^k‖₂, k = ⌊ρD + ½⌋.

    Args:
        params: pytree of real floating arrays.
        ratio: fraction kept, in [0, 1].
        where: which leaves are under study.

    Raises:
        ValueError: as `magnitude_mask`.

    >>> import jax.numpy as jnp
    >>> removed_norm(jnp.array([3.0, 4.0, 12.0]), 1 / 3)
    Array(5., dtype=float32)
    """
    check_range("ratio", ratio, 0, 1)
    weights, _ = flatten_weights(params, where)
    kept = num_kept(weights.size, ratio)
    at, _ = magnitudes.find_split(magnitudes.magnitude_bits(weights), lambda k, _: k < kept)
    return at.radius(kept)


def num_kept(dim: int, ratio: Any) -> Int[Array, "..."]:
    """Return the number of weights that a ratio keeps: ⌊ratio · dim + ½⌋.

    Exact for the ratio as rounded to float32 and every dim below 2³¹.

    >>> num_kept(1_000_000_007, 0.5)
    Array(500000004, dtype=int32)
    """
    # Long multiplication by the binary digits of the ratio, the lowest first, halving between
    # them: floats would lose units past 2²⁴, and 64-bit integers may be switched off.
    ratio = jnp.asarray(ratio, jnp.float32)
    mantissa, exponent = jnp.frexp(ratio)
    digits = jnp.ldexp(mantissa, 24).astype(jnp.uint32)

    def add_digit(step, total):
        place = 56 - step
        index = 24 - exponent - place
        digit = jax.lax.shift_right_logical(digits, index.astype(jnp.uint32)) & 1
        digit = jnp.where((index >= 0) & (index < 24), digit, 0)
        half = place == 1
        return (total + digit * dim + half.astype(jnp.uint32)) >> 1

    total = jax.lax.fori_loop(0, 56, add_digit, jnp.zeros_like(digits))
    return jnp.where(ratio < 1, total.astype(jnp.int32), dim)


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

    L(w^k) for k = ⌊ρD + ½⌋, one compiled program for all ratios. Costs one evaluation a ratio and
    one sort of the weights; memory of their ranks and one pruned copy.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples.
        params: pytree of real floating arrays.
        batches: as for `curvature.hessian_matvec`.
        ratios: fractions kept [r], each in [0, 1].
        *operands: passed on to `loss`.
        where: which leaves are under study; the others stay.
        on_progress: called as `on_progress(stage, ratios_done, ratios)` now and then.
        stage: a name for `on_progress`.
        mesh: devices to share the examples, over the first axis of a `jax.sharding.Mesh`; each has
            the weights, and the rest is done on all of them.

    Returns:
        A `SweepResult`.

    Raises:
        TypeError: if `loss` gives no scalar.
        ValueError: if a ratio lies outside [0, 1], there are none, or there are no data.
        MemoryError: a `planning.DeviceMemoryError` if the device runs out of memory.

    >>> import jax.numpy as jnp
    >>> sweep = magnitude_sweep(
    ...     lambda w, x: jnp.mean((x - w) ** 2), jnp.array([1.0, 2.0]),
    ...     jnp.array([[[1.0, 2.0]]]), [0.0, 0.5, 1.0])
    >>> sweep.losses
    Array([2.5, 0.5, 0. ], dtype=float32)
    """
    ratios = _check_ratios(ratios)
    check_scalar(loss, params, first_batch(batches), *operands)
    weights, unflatten = flatten_weights(params, where)
    examples = sharding.examples_of(batches, mesh)
    arrays = (weights, magnitudes.ranks(weights), unflatten, operands)
    weights, ranks, unflatten, operands = sharding.replicate(arrays, mesh)
    # Pieces of one size, so that there is one program and progress can be told in between.
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
    pieces = sharding.gather(pieces, mesh)
    return jax.tree.map(lambda *x: jnp.concatenate(x)[: ratios.size], *pieces)


def _check_ratios(ratios: Any) -> Float[Array, "r"]:
    ratios = jnp.atleast_1d(jnp.asarray(ratios, jnp.float32))
    if ratios.ndim != 1 or not ratios.size:
        raise ValueError(f"ratios must be a non-empty vector, got shape {ratios.shape}")
    check_range("ratios", ratios, 0, 1)
    return ratios


@partial(jax.jit, static_argnums=0)
def _sweep(loss, weights, ranks, unflatten, examples, ratios, operands) -> SweepResult:
    def of_batch(batch, unflatten, pruned, operands):
        return loss(unflatten(pruned), batch, *operands)

    def at(ratio):
        kept = num_kept(weights.size, ratio)
        pruned = jnp.where(ranks < kept, weights, 0)
        value = sharding.mean(examples, of_batch, unflatten, pruned, operands)
        radius = jnp.linalg.norm(weights - pruned)
        return SweepResult(ratio, value, kept, radius, jnp.abs(pruned).sum())

    return jax.lax.map(at, ratios)


def empirical_limit(
    sweep: SweepResult, dense_loss: Any, epsilon: Any, *, interpolate: bool = False
) -> Float[Array, ""]:
    """Read the empirical limit off a sweep.

    The smallest ρ of the sweep with L(w^k) ≤ L(w*) + ε at it and at every larger ρ of the sweep;
    1 if not even the largest passes. For an accuracy, pass its negative and a tolerance.

    Args:
        sweep: from `magnitude_sweep`.
        dense_loss: L(w*).
        epsilon: ε, tolerated increase, at least 0.
        interpolate: where a smooth curve, such as a forecast, passes L(w*) + ε: on the line
            between that ratio and the next smaller one of the sweep.

    Raises:
        ValueError: if `epsilon` is negative or NaN, or `dense_loss` is not finite.

    >>> import jax.numpy as jnp
    >>> sweep = SweepResult(jnp.array([0.1, 0.2, 0.4, 1.0]), jnp.array([0.5, 3.0, 0.9, 1.0]),
    ...                     *[jnp.zeros(4)] * 3)
    >>> empirical_limit(sweep, 0.9, 0.2)
    Array(0.4, dtype=float32)
    >>> empirical_limit(sweep, 0.9, 0.2, interpolate=True).round(3)
    Array(0.381, dtype=float32)
    """
    check_range("epsilon", epsilon, 0)
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


def support_fraction(
    params: Any, *, relative_norm: float = 1e-3, where: Where = is_weight
) -> Float[Array, ""]:
    """Measure how many weights an l1-trained network really uses.

    The smallest fraction whose removed rest has norm at most `relative_norm` · ‖w‖₂. (Weights that
    a subgradient drives to zero come near it and not to it, so that counting nonzeros fails.)

    Args:
        params: pytree of real floating arrays.
        relative_norm: the share of the norm that is taken for nothing.
        where: which leaves are under study.

    Raises:
        ValueError: if `relative_norm` is negative or NaN, or as `magnitude_mask`.

    >>> import jax.numpy as jnp
    >>> support_fraction(jnp.array([1.0, 2.0, 1e-5, 0.0]))
    Array(0.5, dtype=float32)
    """
    check_range("relative_norm", relative_norm, 0)
    weights, _ = flatten_weights(params, where)
    bits = magnitudes.magnitude_bits(weights)
    allowed = relative_norm * jnp.linalg.norm(weights)
    _, kept = magnitudes.find_split(bits, lambda _, radius: radius > allowed)
    return kept / weights.size


def taylor_forecast(
    gradient: Float[Array, "D"],
    matvec: Any,
    weights: Float[Array, "D"],
    ratios: Any,
) -> Float[Array, "r"]:
    """Forecast the rise in loss by pruning from the second-order Taylor expansion at w*.

    ΔL ≈ gᵀδ + ½ δᵀHδ with δ = w^k - w*, what pruning itself removes. Costs one product a ratio.
    It is the baseline that a prediction from the spectrum alone has to be held against.

    Args:
        gradient: g, of the data loss at the weights under study.
        matvec: H, as from `curvature.hessian_matvec`.
        weights: w* under study.
        ratios: fractions kept, each in [0, 1].

    Raises:
        ValueError: if a ratio lies outside [0, 1] or the shapes differ.

    >>> import jax.numpy as jnp
    >>> taylor_forecast(jnp.zeros(2), lambda v: 2 * v, jnp.array([1.0, 3.0]), [0.5])
    Array([1.], dtype=float32)
    """
    ratios = _check_ratios(ratios)
    if gradient.shape != weights.shape or weights.ndim != 1:
        raise ValueError(
            f"gradient must have the shape of weights, {weights.shape}, got {gradient.shape}"
        )
    ranks = magnitudes.ranks(weights)
    # A Partial within a Partial would be a constant of the program, with all of its data.
    matvec = matvec if isinstance(matvec, Partial) else Partial(matvec)
    return _taylor(matvec, gradient, weights, ranks, ratios)


@jax.jit
def _taylor(matvec, gradient, weights, ranks, ratios):
    def at(ratio):
        step = jnp.where(ranks < num_kept(weights.size, ratio), 0, -weights)
        return jnp.vdot(gradient, step) + jnp.vdot(step, matvec(step)) / 2

    return jax.lax.map(at, ratios)
