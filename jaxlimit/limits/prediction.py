"""The pruning limit as a fixed point: the ratio at which a bound asks for no more than is kept."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlimit._core import scale
from jaxlimit._core.checks import check_choice, is_finite
from jaxlimit._core.estimate import NORMAL_QUANTILE
from jaxlimit._core.summaries import short_repr
from jaxlimit._core.weights import Where, flatten_weights, is_weight
from jaxlimit.limits import _crossing
from jaxlimit.limits._crossing import Criterion
from jaxlimit.limits.bounds import NEGATIVE, check_measure, eigenvalue_unit, relative_ridge
from jaxlimit.limits.tolerance import split_epsilon
from jaxlimit.spectrum import SpectralMeasure

OFFSETS = ("perpendicular", "random")


class PruningLimit(NamedTuple):
    """A predicted pruning limit with its error bar.

    Attributes:
        ratio: ρ*, the smallest fraction of weights kept.
        lower: lower end of the 95 % interval, which combines the bracket over the Lanczos depth
            with the random errors of the probes and of ε.
        upper: its upper end.
        standard_error: the random error alone: of the probes and, where ε has a standard error, of
            ε by dρ*/dε.
        num_kept: ρ*·D, -1 where ρ* is NaN.
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

    __repr__ = short_repr


def pruning_limit(
    measure: SpectralMeasure,
    weights: Any,
    epsilon: Any,
    *,
    negative: str = "abs",
    where: Where = is_weight,
) -> PruningLimit:
    """Predict the pruning limit, as published: the ratio that equals its own lower bound.

    ρ* = k*/D with k* the smallest k such that ρ_L(R(k/D)) ≤ k/D. ρ_L grows with R, and R falls with
    k, so there is one crossing. Bisection on the magnitude threshold finds it exactly in k, in 31
    passes over the weights, without sorting. Memory of two copies of the weights.

    `ratio` and `radius` have derivatives, by the implicit function theorem, with respect to the
    measure's nodes and weights, `weights` and `epsilon`; the other fields are constants to `grad`.

    Args:
        measure: spectrum of H over the same weights.
        weights: w*, a pytree or flat vector.
        epsilon: ε ≥ 0, tolerated rise of the loss: a number, or an `Estimate` whose standard error
            adds to that of the measure.
        negative: "abs" or "clip".
        where: which leaves are weights under study.

    Returns:
        A `PruningLimit`. Its ratio is 0 where H vanishes, all weights are 0 or ε = ∞. Any finite ε,
        however large, keeps one weight, since ρ_L > 0 (the corrected threshold is 0 from some ε
        on). ε = 0 removes what is 0 already, or as many weights as H has zero eigenvalues. Under
        `jit`, where nothing can be raised, all fields but `num_kept` are NaN in the cases below.

    Raises:
        TypeError: if `measure` is no `SpectralMeasure`, or a leaf is not real floating.
        ValueError: if the number of weights differs from the measure's, the measure, a weight or
            the sum of their squares is not finite, `negative` is unknown, or ε is negative, NaN or
            not one number.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> limit = pruning_limit(exact_measure(jnp.full(4, 2.0)), jnp.array([4.0, 1.0, 1.0, 1.0]), 1.0)
    >>> limit.num_kept, limit.ratio
    (Array(3, dtype=int32), Array(0.75, dtype=float32))

    Zhang, Zhang, Sun, Liu (2024), section 4 and algorithm 1.
    """
    return _predict(*_checked(negative, None, measure, weights, epsilon, where))


def random_subspace_threshold(
    measure: SpectralMeasure,
    weights: Any,
    epsilon: Any,
    *,
    offset: str = "perpendicular",
    negative: str = "abs",
    where: Where = is_weight,
) -> PruningLimit:
    """Predict the pruning limit by the corrected threshold, that of random subspaces.

    A random affine subspace of dimension k = ρD at distance R meets {½wᵀHw ≤ ε} asymptotically
    where ρ ≥ (1/D) tr H(H + γI)⁻¹ with γ = c(1-ρ)/ρ if the offset R is perpendicular to the
    subspace, as in pruning, and γ = c/ρ if the subspace passes through a random point at distance
    R; c = 2ε/R². Here R = R(ρ) too, and ρ is solved for.

    Derivation. Let W be a basis of the orthogonal complement, of dimension D - k, and u ⟂ V a unit
    vector. The least loss on Ru + V is ½R² uᵀ(WᵀH⁻¹W)⁻¹u, the Schur complement, which for random
    V and u concentrates at ½R² tr(WᵀH⁻¹W)⁻¹/(D-k). For a random W, W(WᵀAW)⁻¹Wᵀ has the
    deterministic equivalent (A + κI)⁻¹, κ fixed by tr A(A + κI)⁻¹ = D - k. With A = H⁻¹, γ = 1/κ
    these read tr H(H + γI)⁻¹ = k and least loss = ½R² γρ/(1-ρ), and the latter is ε at
    γ = c(1-ρ)/ρ. Through a random point at distance R the perpendicular offset is only R√(1-ρ).

    Args:
        measure: spectrum of H over the same weights.
        weights: w*, a pytree or flat vector.
        epsilon: ε ≥ 0, a number or an `Estimate`.
        offset: "perpendicular" or "random".
        negative: "abs" or "clip".
        where: which leaves are weights under study.

    Returns:
        A `PruningLimit`, found and differentiable as in `pruning_limit`. Its ratio is 0 where a
        random point at distance ‖w*‖ is inside, that is ½‖w*‖² tr|H|/D ≤ ε.

    Raises:
        TypeError: as `pruning_limit`.
        ValueError: as `pruning_limit`, or if `offset` is unknown.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.spectrum import exact_measure
    >>> measure = exact_measure(jnp.linspace(0.0, 4.0, 64))
    >>> random_subspace_threshold(measure, jnp.ones(64), 1.0).ratio
    Array(0.953125, dtype=float32)
    """
    check_choice("offset", offset, OFFSETS)
    return _predict(*_checked(negative, offset, measure, weights, epsilon, where))


def _checked(
    negative: str,
    offset: str | None,
    measure: SpectralMeasure,
    weights: Any,
    epsilon: Any,
    where: Where,
) -> tuple:
    """Return the arguments of `_predict`, or raise."""
    check_choice("negative", negative, NEGATIVE)
    check_measure("measure", measure)
    epsilon, epsilon_error = split_epsilon(epsilon)
    vector, _ = flatten_weights(weights, where, name="weights")
    if vector.size != measure.dim:
        raise ValueError(
            f"weights must have as many entries as the measure's operator, {measure.dim}, "
            f"got {vector.size}"
        )
    if not is_finite(scale.norm(vector)):
        raise ValueError(
            f"weights must have a norm that {scale.wide_type(vector.dtype)} can hold, got "
            f"magnitudes up to {float(jnp.abs(vector).max()):.3g}: scale them by s and ε by s²"
        )
    criterion = Criterion.of(negative, offset)
    return criterion, measure, vector, jnp.asarray(epsilon, jnp.result_type(float)), epsilon_error


@jax.jit
def _predict(criterion, measure, weights, epsilon, epsilon_error) -> PruningLimit:
    fixed = jax.lax.stop_gradient((measure, weights, epsilon, epsilon_error))
    crossings = _crossing.find(criterion, *fixed[:3])
    at = jax.tree.map(lambda x: x[0], crossings)
    by_probes, by_epsilon = _random_errors(criterion, at, fixed[0], *fixed[2:])
    joint = jnp.hypot(by_probes, by_epsilon)
    ratio, radius = _crossing.differentiable(criterion, at, measure, weights, epsilon)
    # The crossings of the readings include the error of the probes already.
    extra = NORMAL_QUANTILE * (joint - by_probes)
    found = PruningLimit(
        ratio=ratio,
        lower=jnp.maximum(crossings.ratio[1] - extra, 0),
        upper=jnp.minimum(crossings.ratio[2] + extra, 1),
        standard_error=joint,
        num_kept=at.num_kept,
        radius=radius,
        threshold=at.threshold,
    )
    # NaN would count as no curvature.
    known = _is_known(*fixed[:3])
    found = jax.tree.map(lambda x: jnp.where(known, x, jnp.nan), found)
    return found._replace(num_kept=jnp.where(known, at.num_kept, -1))


def _is_known(measure, weights, epsilon):
    read = (measure.nodes, measure.weights, measure.rules)
    finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(read)]
    finite.append(jnp.isfinite(weights).all())
    return jnp.stack(finite).all() & (epsilon >= 0)


def _random_errors(criterion, at, measure, epsilon, epsilon_error):
    """Return the standard errors of the ratio that come from the probes and from ε."""
    rates = _crossing.slopes(criterion, measure, at, epsilon)
    ridge = relative_ridge(at.radius, epsilon, eigenvalue_unit(measure))
    excess = criterion.excess(measure, ridge, at.ratio)
    return rates.excess * excess.standard_error, rates.of_epsilon(epsilon, epsilon_error)
