"""Refitting what is kept: the quadratic's least rise with the removed weights at zero."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import magnitudes
from jaxlimit._core.checks import as_array, check_count, check_range
from jaxlimit._core.estimate import value_of
from jaxlimit._core.operator import Operator, prepare, returns_local
from jaxlimit._core.weights import check_kept, check_places, flat_vectors


class Refit(NamedTuple):
    """A quadratic minimised over the kept weights, or several of them along a first axis.

    Attributes:
        weights: the refitted weights, zero where removed.
        rise: the quadratic's rise over w*, gradient terms included.
        one_shot: the same rise with the kept weights left as they were.
        residual: ‖∇_K‖ after refitting over ‖∇_K‖ before, ∇_K the gradient over the kept weights.
        curvature: the least pᵀHp/pᵀp over the directions taken. A value ≤ 0 means that the
            quadratic has no minimum; the refit then stopped before that direction.
        num_products: products made.
    """

    weights: Float[Array, "... D"]
    rise: Float[Array, "..."]
    one_shot: Float[Array, "..."]
    residual: Float[Array, "..."]
    curvature: Float[Array, "..."]
    num_products: Int[Array, "..."]


class RefittedLimit(NamedTuple):
    """The fewest weights whose refitted quadratic stays within ε.

    Attributes:
        ratio: k/D.
        num_kept: k.
        rise: the refitted rise at k, at most ε.
        residual: that of the refit at k; if it is large, fewer weights might be enough.
        num_products: products made in all.
    """

    ratio: float
    num_kept: int
    rise: float
    residual: float
    num_products: int


class _Search(NamedTuple):
    """The state of conjugate gradients over the kept weights."""

    step: Float[Array, "D"]
    residual: Float[Array, "D"]
    direction: Float[Array, "D"]
    square: Float[Array, ""]
    curvature: Float[Array, ""]
    num_products: Int[Array, ""]


@returns_local
def refit(
    matvec: Any,
    gradient: Float[Array, "D"],
    weights: Float[Array, "D"],
    kept: Bool[Array, "D"],
    *,
    start: Float[Array, "D"] | None = None,
    damping: float = 0.0,
    num_steps: int = 30,
    tolerance: float = 1e-3,
) -> Refit:
    """Refit the kept weights on the quadratic, by conjugate gradients.

    With R removed and K kept, δ_R = -w_R is given, and δ_K = -(H_KK + μI)⁻¹(g_K - H_KR w_R)
    minimises q(δ) = gᵀδ + ½ δᵀHδ + ½ μ‖δ_K‖². `rise` is q without its damping term. Costs at most
    num_steps + 3 products, and memory of 6 D floats besides the operator.

    Args:
        matvec: H, or the Gauss-Newton matrix, whose quadratic always has a minimum; an `Operator`,
            or a function from [D] to [D].
        gradient: g at w*, of the weights under study.
        weights: w*.
        kept: True where a weight is kept.
        start: weights to start from, such as those of a refit that kept more.
        damping: μ ≥ 0.
        num_steps: conjugate gradient steps, at most.
        tolerance: stop where the residual is this share of the gradient at δ_K = 0.

    Returns:
        A `Refit`. The rise of every iterate is an upper bound of the least rise; the residual shows
        how much it may still fall.

    Raises:
        TypeError: if `kept` is not boolean or `num_steps` is no static int.
        ValueError: if the shapes differ, a weight or the gradient is not finite, `num_steps` < 1,
            or `damping` or `tolerance` is negative.

    >>> import jax.numpy as jnp
    >>> H = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> kept = jnp.array([True, False])
    >>> refit(lambda v: H @ v, jnp.zeros(2), jnp.array([3.0, 1.0]), kept).rise
    Array(0.75, dtype=float32)

    Hassibi, Stork (1993), equation 5, for several weights at once; Hestenes, Stiefel (1952).
    """
    gradient, weights = flat_vectors(gradient=gradient, weights=weights)
    operator, kept = _prepare(matvec, weights), check_kept("kept", kept, weights.size)
    check_count("num_steps", num_steps, 0)
    for name, value in (("damping", damping), ("tolerance", tolerance)):
        check_range(name, value, 0)
    start, _ = flat_vectors(start=weights if start is None else start, weights=weights)
    return _refit(operator, gradient, weights, kept, start, damping, tolerance, num_steps)


@returns_local
def refitted(
    matvec: Any,
    gradient: Float[Array, "D"],
    weights: Float[Array, "D"],
    num_kept: Int[Array, "r"],
    *,
    ranks: Int[Array, "D"] | None = None,
    damping: float = 0.0,
    num_steps: int = 30,
    tolerance: float = 1e-3,
) -> Refit:
    """Refit at several counts of one order of removal: the forecast of pruning with fine-tuning.

    Goes from the most weights kept to the fewest; each refit starts from the one before, cut to its
    own weights. Costs at most num_steps + 3 products a count; `weights` of the result is [r, D].

    Args:
        matvec: see `refit`.
        gradient: see `refit`.
        weights: w*.
        num_kept: counts, each from 0 to D, in any order.
        ranks: each weight's place in the order, 0 the last to be removed; magnitude by default.
        damping: μ; see `refit`.
        num_steps: see `refit`.
        tolerance: see `refit`.

    Returns:
        A `Refit` whose fields have the counts along their first axis, in the order given.

    Raises:
        TypeError: as `refit`, or if `num_kept` is no vector of integers.
        ValueError: as `refit`, or if a count lies outside [0, D], or `ranks` is no permutation.

    >>> import jax.numpy as jnp
    >>> H = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> curve = refitted(lambda v: H @ v, jnp.zeros(2), jnp.array([3.0, 1.0]), jnp.array([2, 1]))
    >>> curve.rise, curve.one_shot
    (Array([0.  , 0.75], dtype=float32), Array([0., 1.], dtype=float32))
    """
    gradient, weights = flat_vectors(gradient=gradient, weights=weights)
    num_kept = as_array("num_kept", num_kept)
    check_range("num_kept", num_kept, 0, weights.size)
    if num_kept.ndim != 1 or not jnp.issubdtype(num_kept.dtype, jnp.integer):
        raise TypeError(
            f"num_kept must be a vector of integers, got {num_kept.dtype} {num_kept.shape}"
        )
    check_count("num_steps", num_steps, 0)
    for name, value in (("damping", damping), ("tolerance", tolerance)):
        check_range(name, value, 0)
    ranks = _checked_ranks(ranks, weights)
    operator = _prepare(matvec, weights)
    descending = jnp.argsort(-num_kept)
    args = (operator, gradient, weights, ranks, num_kept[descending], damping, tolerance)
    curve = _along(*args, num_steps)
    return jax.tree.map(lambda leaf: leaf[jnp.argsort(descending)], curve)


def refitted_limit(
    matvec: Any,
    gradient: Float[Array, "D"],
    weights: Float[Array, "D"],
    epsilon: Any,
    *,
    ranks: Int[Array, "D"] | None = None,
    damping: float = 0.0,
    num_steps: int = 30,
    tolerance: float = 1e-3,
    relative: float = 1e-2,
) -> RefittedLimit:
    """Find ρ_refit, the fewest weights of an order whose refitted quadratic stays within ε.

    The least rise grows as fewer weights are kept, so bisection on log k finds the count, to a
    relative width in k. Costs log₂(ln D/relative) refits.

    Args:
        matvec: see `refit`.
        gradient: see `refit`.
        weights: w*.
        epsilon: ε ≥ 0, a number or an `Estimate`, whose value is used.
        ranks: see `refitted`.
        damping: see `refit`.
        num_steps: see `refit`.
        tolerance: see `refit`.
        relative: width of the last bracket of k, over k.

    Returns:
        A `RefittedLimit` of the quadratic model: what iterative pruning with fine-tuning reaches if
        the curvature does not change and the remainder does not matter.

    Raises:
        TypeError: as `refit`.
        ValueError: as `refit`, or if ε is negative or not finite, or `relative` is not positive.

    >>> import jax.numpy as jnp
    >>> H = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> refitted_limit(lambda v: H @ v, jnp.zeros(2), jnp.array([3.0, 1.0]), 0.8).num_kept
    1
    """
    epsilon = value_of(epsilon)
    check_range("epsilon", epsilon, 0, float(np.finfo(np.float32).max))
    epsilon = float(epsilon)
    check_range("relative", relative, 0, open_low=True)
    gradient, weights = flat_vectors(gradient=gradient, weights=weights)
    ranks = _checked_ranks(ranks, weights)
    settings = {"damping": damping, "num_steps": num_steps, "tolerance": tolerance}
    start, products = weights, 0

    def at(count: int) -> Refit:
        nonlocal products
        found = refit(matvec, gradient, weights, ranks < count, start=start, **settings)
        products += int(found.num_products)
        return found

    enough, few, best = weights.size, 0, None
    nothing = at(0)
    if float(nothing.rise) <= epsilon:
        enough, best = 0, nothing
    while enough - few > max(1, relative * enough) and best is not nothing:
        middle = int(np.clip(round(np.sqrt(max(few, 1) * enough)), few + 1, enough - 1))
        found = at(middle)
        if float(found.rise) <= epsilon:
            enough, best, start = middle, found, found.weights
        else:
            few = middle
    best = at(enough) if best is None else best
    return RefittedLimit(
        enough / weights.size, enough, float(best.rise), float(best.residual), products
    )


def _prepare(matvec: Any, weights: Float[Array, "D"]) -> Operator:
    instead = "refit on fewer examples at once"
    return prepare(matvec, weights.size, weights.dtype, instead=instead)


def _checked_ranks(ranks: Any, weights: Float[Array, "D"]) -> Int[Array, "D"]:
    if ranks is None:
        return magnitudes.ranks(weights)
    return check_places("ranks", ranks, weights.size)


@partial(jax.jit, static_argnums=7)
def _refit(operator, gradient, weights, kept, start, damping, tolerance, num_steps) -> Refit:
    cut = jnp.where(kept, 0, -weights)
    slope = gradient + operator(cut)
    unrefitted = jnp.vdot(gradient, cut) + jnp.vdot(cut, slope - gradient) / 2
    before = jnp.where(kept, slope, 0)
    # In units of the gradient's largest entry, whose squares neither under- nor overflow.
    unit = jnp.max(jnp.abs(before))
    unit = jnp.where(unit > 0, unit, 1)
    norm = jnp.linalg.norm(before / unit)
    step = jnp.where(kept, start - weights, 0)
    moved = jnp.any(step != 0)
    curved = jax.lax.cond(moved, operator, jnp.zeros_like, step)
    residual = jnp.where(kept, -(slope + curved + damping * step), 0) / unit

    def kept_block(direction):
        return jnp.where(kept, operator(direction), 0) + damping * direction

    search = _conjugate_gradients(kept_block, residual, tolerance * norm, num_steps)
    step = step + unit * search.step
    change = cut + step
    product = operator(change)
    left = jnp.where(kept, gradient + product + damping * step, 0) / unit
    return Refit(
        jnp.where(kept, weights + step, 0),
        rise=jnp.vdot(gradient, change) + jnp.vdot(change, product) / 2,
        one_shot=unrefitted,
        residual=jnp.linalg.norm(left) / jnp.where(norm > 0, norm, 1),
        curvature=search.curvature,
        num_products=search.num_products + 2 + moved,
    )


def _conjugate_gradients(block, residual, least_norm, num_steps) -> _Search:
    """Solve block(x) = residual from x = 0, up to the first direction without curvature."""

    def unfinished(search: _Search) -> Bool[Array, ""]:
        more = search.num_products < num_steps
        return more & (search.square > least_norm**2) & (search.curvature > 0)

    def advance(search: _Search) -> _Search:
        product = block(search.direction)
        size = jnp.vdot(search.direction, search.direction)
        bent = jnp.vdot(search.direction, product)
        alpha = jnp.where(bent > 0, search.square / jnp.where(bent > 0, bent, 1), 0)
        residual = search.residual - alpha * product
        square = jnp.vdot(residual, residual)
        beta = square / jnp.where(search.square > 0, search.square, 1)
        return _Search(
            search.step + alpha * search.direction,
            residual,
            residual + beta * search.direction,
            square,
            jnp.minimum(search.curvature, bent / jnp.where(size > 0, size, 1)),
            search.num_products + 1,
        )

    square = jnp.vdot(residual, residual)
    infinite = jnp.asarray(jnp.inf, residual.dtype)
    first = _Search(jnp.zeros_like(residual), residual, residual, square, infinite, jnp.int32(0))
    return jax.lax.while_loop(unfinished, advance, first)


@partial(jax.jit, static_argnums=7)
def _along(operator, gradient, weights, ranks, counts, damping, tolerance, num_steps) -> Refit:
    def at(start, count):
        kept = ranks < count
        found = _refit(operator, gradient, weights, kept, start, damping, tolerance, num_steps)
        return found.weights, found

    return jax.lax.scan(at, weights, counts)[1]
