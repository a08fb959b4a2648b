"""The pruning limit: how small a fraction of its weights a network can be pruned to.

With H the Hessian of the loss at the weights, ε the tolerated rise of the loss and R the norm of
what is removed, everything here is a trace of f(H), f(λ) = λ/(λ + c), c = 2ε/R². H of a trained
network has small negative eigenvalues; `negative` says what f makes of them:

- "abs": f(|λ|), as the authors of the bounds computed;
- "clip": f(max(λ, 0)), a direction of negative curvature taken for flat.

Source of the bounds: Zhang, Zhang, Sun, Liu, "How Sparse Can We Prune A Deep Network: A Fundamental
Limit Perspective", NeurIPS 2024.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlimit import _magnitudes
from jaxlimit._batches import check_scalar, first_batch, group_batches
from jaxlimit._checks import check_choice, check_count, check_range
from jaxlimit._estimate import Estimate
from jaxlimit._weights import Where, flatten_weights, is_weight
from jaxlimit.spectrum import SpectralMeasure, trace_bracket

NEGATIVE = ("abs", "clip")
OFFSETS = ("perpendicular", "random")


class PruningLimit(NamedTuple):
    """A predicted pruning limit with its error bar.

    Attributes:
        ratio: ρ*, the smallest fraction of weights kept.
        lower: lower end of the 95 % interval, which joins the probes' error with the bracket over
            the Lanczos depth.
        upper: its upper end.
        standard_error: the probes' part of the error alone.
        num_kept: ρ*·D.
        radius: R(ρ*), the norm of what is removed.
        threshold: magnitude of the smallest weight kept.
    """

    ratio: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    standard_error: Float[Array, ""]
    num_kept: Int[Array, ""]
    radius: Float[Array, ""]
    threshold: Float[Array, ""]


def ridge(radius: Any, epsilon: Any) -> Float[Array, "..."]:
    """Return c = 2ε/R², the eigenvalue below which a direction counts as flat; ∞ at R = 0."""
    square = jnp.asarray(radius, jnp.result_type(float)) ** 2
    return jnp.where(square > 0, 2 * epsilon / jnp.where(square > 0, square, 1), jnp.inf)


def curvature_share(
    eigenvalues: Float[Array, "..."], ridge: Any, *, negative: str = "abs"
) -> Float[Array, "..."]:
    """Return f(λ) = λ/(λ + c) after |λ| or max(λ, 0); 0 at λ = 0 whatever c.

    >>> import jax.numpy as jnp
    >>> curvature_share(jnp.array([-1.0, 0.0, 3.0]), 1.0)
    Array([0.5 , 0.  , 0.75], dtype=float32)
    """
    check_choice("negative", negative, NEGATIVE)
    size = jnp.abs(eigenvalues) if negative == "abs" else jnp.maximum(eigenvalues, 0)
    return jnp.where(size > 0, size / jnp.where(size > 0, size + ridge, 1), 0)


def lower_bound(
    measure: SpectralMeasure, radius: Any, epsilon: Any, *, negative: str = "abs"
) -> Estimate:
    """Bound the pruning ratio from below, as published: the effective dimension of H over D.

    ρ_L(R) = (1/D) tr H(H + cI)⁻¹ = 1 - (1/D) Σ c/(λᵢ + c), c = 2ε/R²: the statistical dimension of
    the cone from which a point at distance R sees the ellipsoid {½wᵀHw ≤ ε}, taken from D. It is
    the paper's prediction, no theorem about a given network. No product with H is needed, so grids
    over R and ε are free.

    Args:
        measure: spectrum of H.
        radius: R ≥ 0, any shape.
        epsilon: ε ≥ 0, any shape that broadcasts with `radius`.
        negative: "abs" or "clip".

    Returns:
        An `Estimate` of the broadcast shape; see `spectrum.trace_bracket` for its interval. 0 at
        R = 0; the share of nonzero eigenvalues at ε = 0.

    Raises:
        ValueError: if `radius` or `epsilon` is negative or NaN, or `negative` is unknown.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> lower_bound(exact_measure(jnp.array([0.0, 2.0])), 1.0, 1.0).value
    Array(0.25, dtype=float32)

    Zhang et al. (2024), Theorem 3.5.
    """
    check_choice("negative", negative, NEGATIVE)
    check_range("radius", radius, 0)
    check_range("epsilon", epsilon, 0)
    thresholds = ridge(*jnp.broadcast_arrays(jnp.asarray(radius), jnp.asarray(epsilon)))
    flat = jax.lax.map(partial(_bound, measure, negative), thresholds.reshape(-1))
    return jax.tree.map(lambda x: x.reshape(thresholds.shape), flat)


def _bound(measure: SpectralMeasure, negative: str, c: Any) -> Estimate:
    estimate = trace_bracket(measure, partial(curvature_share, ridge=c, negative=negative))
    return jax.tree.map(lambda x: jnp.clip(x, 0, 1), estimate)


def upper_bound(
    removed_measure: SpectralMeasure, radius: Any, epsilon: Any, *, dim: int, negative: str = "abs"
) -> Estimate:
    """Bound the pruning ratio from above, as published, from the Hessian of the removed weights.

    ρ_U(R) = 1 - (1/D) Σ_{i ≤ D-k} c/(λ̃ᵢ + c), λ̃ the eigenvalues of the principal submatrix of H on
    the D - k removed weights. ρ_L ≤ ρ_U for positive semi-definite H and for "clip", not for "abs".

    Args:
        removed_measure: spectrum of that submatrix; its `dim` is D - k.
        radius: R ≥ 0.
        epsilon: ε ≥ 0.
        dim: D.
        negative: "abs" or "clip".

    Returns:
        An `Estimate`.

    Raises:
        ValueError: as `lower_bound`, or if `dim` is below the measure's own.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> upper_bound(exact_measure(jnp.array([2.0])), 1.0, 1.0, dim=2).value
    Array(0.75, dtype=float32)

    Zhang et al. (2024), Theorem 4.1.
    """
    dim = check_count("dim", dim, removed_measure.dim)
    estimate = gap(removed_measure, radius, epsilon, dim=dim, negative=negative)
    kept = (dim - removed_measure.dim) / dim
    return estimate._replace(
        value=estimate.value + kept, lower=estimate.lower + kept, upper=estimate.upper + kept
    )


def gap(
    removed_measure: SpectralMeasure, radius: Any, epsilon: Any, *, dim: int, negative: str = "abs"
) -> Estimate:
    """Return the gap between the two bounds where the lower one meets its own ratio.

    Δ = ρ_U - ρ_L = (1/D) tr f(H_removed) at ρ_L = k/D: one trace, not a difference of two.

    Args:
        removed_measure: as for `upper_bound`.
        radius: R(ρ*).
        epsilon: ε.
        dim: D.
        negative: "abs" or "clip".

    Returns:
        An `Estimate`.

    Raises:
        ValueError: as `upper_bound`.
    """
    dim = check_count("dim", dim, removed_measure.dim)
    share = lower_bound(removed_measure, radius, epsilon, negative=negative)
    return jax.tree.map(lambda x: x * (removed_measure.dim / dim), share)


def trace_bound(trace: Any, radius: Any, epsilon: Any, *, dim: int) -> Float[Array, "..."]:
    """Bound ρ_L from above by the trace alone: flat landscapes and small weights prune far.

    ρ_L ≤ 1 - 2εD/(R² tr|H| + 2εD), by Jensen's inequality (λ/(λ+c) is concave).

    Args:
        trace: tr|H|, or tr max(H, 0) for "clip"; tr H itself only if H is positive semi-definite.
        radius: R ≥ 0.
        epsilon: ε ≥ 0.
        dim: D.

    Returns:
        The bound; 0 at R = 0.

    Raises:
        ValueError: if an argument is negative or NaN.

    >>> trace_bound(2.0, 1.0, 1.0, dim=2)
    Array(0.33333334, dtype=float32)
    """
    for name, value in (("trace", trace), ("radius", radius), ("epsilon", epsilon)):
        check_range(name, value, 0)
    mean = jnp.asarray(trace, jnp.result_type(float)) / check_count("dim", dim)
    return curvature_share(mean, ridge(radius, epsilon))


def pruning_limit(
    measure: SpectralMeasure,
    weights: Any,
    epsilon: Any,
    *,
    negative: str = "abs",
    where: Where = is_weight,
) -> PruningLimit:
    """Predict the pruning limit, as published: the ratio at which the lower bound meets itself.

    ρ* = k*/D with k* the smallest k such that ρ_L(R(k/D)) ≤ k/D. ρ_L grows with R and R falls with
    k, so there is one crossing; it is found by bisection on the magnitude threshold, exactly in k,
    in some 32 passes over the weights for each of five curves, without sorting.

    Args:
        measure: spectrum of H over the same weights.
        weights: w*, a pytree or flat vector.
        epsilon: ε ≥ 0, tolerated rise of the loss.
        negative: "abs" or "clip".
        where: which leaves are weights under study.

    Returns:
        A `PruningLimit`. It is 0 where nothing is left of the Hessian or ε allows everything to go.

    Raises:
        ValueError: if the number of weights differs from the measure's, or as `lower_bound`.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> limit = pruning_limit(exact_measure(jnp.full(4, 2.0)), jnp.array([4.0, 1.0, 1.0, 1.0]), 1.0)
    >>> limit.num_kept, limit.ratio
    (Array(3, dtype=int32), Array(0.75, dtype=float32))

    Zhang et al. (2024), section 4 and Algorithm 1.
    """
    check_choice("negative", negative, NEGATIVE)
    check_range("epsilon", epsilon, 0)
    return _solve(measure, _flat(measure, weights, where), epsilon, _published(negative))


def random_subspace_threshold(
    measure: SpectralMeasure,
    weights: Any,
    epsilon: Any,
    *,
    offset: str = "perpendicular",
    negative: str = "abs",
    where: Where = is_weight,
) -> PruningLimit:
    """Predict the pruning limit, as corrected: the threshold of random subspaces of the quadratic.

    A random subspace of dimension k = ρD at distance R meets {½wᵀHw ≤ ε} asymptotically where
    ρ ≥ (1/D) tr H(H + γI)⁻¹ with γ = c(1-ρ)/ρ if the offset R is perpendicular to the subspace, as
    in pruning, and γ = c/ρ if the subspace passes through a random point at distance R; c = 2ε/R².
    Here R = R(ρ) too, and ρ is solved for.

    Args:
        measure: spectrum of H over the same weights.
        weights: w*, a pytree or flat vector.
        epsilon: ε ≥ 0.
        offset: "perpendicular" or "random".
        negative: "abs" or "clip".
        where: which leaves are weights under study.

    Returns:
        A `PruningLimit`.

    Raises:
        ValueError: as `pruning_limit`, or if `offset` is unknown.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> measure = exact_measure(jnp.linspace(0.0, 4.0, 64))
    >>> random_subspace_threshold(measure, jnp.ones(64), 1.0).ratio
    Array(0.953125, dtype=float32)
    """
    check_choice("offset", offset, OFFSETS)
    check_choice("negative", negative, NEGATIVE)
    check_range("epsilon", epsilon, 0)
    curve = _corrected(negative, offset)
    return _solve(measure, _flat(measure, weights, where), epsilon, curve)


def _published(negative: str) -> Callable:
    return _Curve(negative, None)


def _corrected(negative: str, offset: str) -> Callable:
    return _Curve(negative, offset)


class _Curve(NamedTuple):
    """The bound that a ratio is held against; hashable, so that it is static under `jit`."""

    negative: str
    offset: str | None

    def __call__(self, measure, radius, epsilon, ratio):
        c = ridge(radius, epsilon)
        if self.offset is not None:
            ratio = jnp.maximum(ratio, 1 / (2 * measure.dim))
            c = jnp.where(c < jnp.inf, c / ratio, c)
            c = c * (1 - ratio) if self.offset == "perpendicular" else c
        return _bound(measure, self.negative, c)


# The five curves of one prediction, each a reading of an estimate.
_READINGS = (
    lambda e: e.value,
    lambda e: e.lower,
    lambda e: e.upper,
    lambda e: e.value - e.standard_error,
    lambda e: e.value + e.standard_error,
)


@partial(jax.jit, static_argnums=3)
def _solve(measure: SpectralMeasure, weights: Array, epsilon: Any, curve: _Curve) -> PruningLimit:
    bits = _magnitudes.magnitude_bits(weights)
    dim = weights.size

    def crossing(reading):
        def keeps_too_few(num_kept, radius):
            ratio = num_kept / dim
            estimate = curve(measure, radius, epsilon, ratio)
            return jax.lax.switch(reading, _READINGS, estimate) > ratio

        return _magnitudes.find_split(bits, keeps_too_few)

    splits, num_kept = jax.lax.map(crossing, jnp.arange(len(_READINGS)))
    ratio, lower, upper, below, above = num_kept / dim
    return PruningLimit(
        ratio=ratio,
        lower=lower,
        upper=upper,
        standard_error=(above - below) / 2,
        num_kept=num_kept[0],
        radius=jax.tree.map(lambda x: x[0], splits).radius(num_kept[0]),
        threshold=splits.magnitude[0],
    )


def _flat(measure: SpectralMeasure, weights: Any, where: Where) -> Array:
    vector = flatten_weights(weights, where)[0]
    if vector.size != measure.dim:
        raise ValueError(
            f"weights must have as many entries as the measure's operator, {measure.dim}, "
            f"got {vector.size}"
        )
    return vector


def loss_tolerance(
    loss: Callable, params: Any, batches: Any, *operands: Any, batch_size: int = 128
) -> Float[Array, ""]:
    """Measure the tolerated rise of the loss: the spread of the loss of one batch.

    ε = σ(per-example loss at w*)/√batch_size, free of how the data happen to be batched. Costs one
    evaluation of the data.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples.
        params: pytree of real floating arrays.
        batches: as for `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        batch_size: whose standard deviation is taken; the paper's choice is 128.

    Raises:
        TypeError: if `loss` gives no scalar.
        ValueError: if there are no data or `batch_size` < 1.
        FloatingPointError: if the loss of an example is not finite.

    >>> import jax.numpy as jnp
    >>> loss_tolerance(lambda w, x: jnp.mean(w * x), 1.0, jnp.array([[-1.0, 1.0]]), batch_size=4)
    Array(0.5, dtype=float32)
    """
    check_count("batch_size", batch_size)
    check_scalar(loss, params, first_batch(batches), *operands)
    losses = _example_losses(loss, params, group_batches(batches), operands)
    if not bool(jnp.all(jnp.isfinite(losses))):
        raise FloatingPointError("loss must be finite at every example, got NaN or infinity")
    return losses.std() / batch_size**0.5


@partial(jax.jit, static_argnums=0)
def _example_losses(loss, params, groups, operands):
    def of_example(example):
        return loss(params, jax.tree.map(lambda x: x[None], example), *operands)

    of_batch = jax.vmap(of_example)
    return jnp.concatenate([jax.lax.map(of_batch, g.batches).ravel() for g in groups])
