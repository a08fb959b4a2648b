"""The limit from below: a bound that no mask within ε of a convex quadratic can beat."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_count, check_range, is_finite
from jaxlimit._core.estimate import value_of
from jaxlimit._core.operator import Operator, apply, prepare, returns_local
from jaxlimit._core.sharding import local
from jaxlimit._core.summaries import short_repr
from jaxlimit.limits._bound import Bound, bound_of
from jaxlimit.limits._relaxation import (
    Iterate,
    Quadratic,
    begin,
    dot,
    metric_of,
    negative_curvature,
    next_price,
    step,
)

# Stop where the best mask known, or what is still to be had, is within these shares of the bound.
KNOWN_GAP = 0.01
_OPEN_GAP = 1e-3
# Rounding is taken to be at most this many times the largest asymmetry that products showed.
_SAFETY = 4.0
# Products of the last check: z̄ again, and the mask that attains its bound. Fewer than the other
# leave no step between them.
_NUM_AUDITS = 2
_LEAST_BUDGET = _NUM_AUDITS + 2


class Certificate(NamedTuple):
    """A number of weights below which no mask stays within ε of the quadratic.

    Attributes:
        num_kept: every mask within ε keeps at least so many weights.
        ratio: num_kept / D.
        relaxed: the z̄ [D] that proves it, 1 = removed; one product and a sort check it.
        slack: what ε was raised by for rounding.
        num_products: products made in this run.
        open: about how many weights num_kept may still rise by with more products; what is between
            num_kept + open and a mask lies in the relaxation, or in the mask.
        history: num_kept as it was after each product.
    """

    num_kept: int
    ratio: float
    relaxed: Float[Array, "D"]
    slack: float
    num_products: int
    open: int
    history: tuple[int, ...]

    def __repr__(self) -> str:
        """Say it in one line."""
        return short_repr(self._replace(history=np.asarray(self.history, np.int32)))


@returns_local
def certificate(
    operator: Any,
    gradient: Float[Array, "D"],
    weights: Float[Array, "D"],
    epsilon: Any,
    *,
    num_products: int = 200,
    diagonal: Float[Array, "D"] | None = None,
    shift: float = 0.0,
    known_kept: int | None = None,
    start: Any = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Certificate:
    """Bound from below how many weights any mask within ε of a quadratic keeps.

    Let z ∈ {0, 1}ᴰ mark what is removed, B be positive semi-definite, a = w∘g and
    A = diag(w) B diag(w). The model of the loss's rise is q(z) = -aᵀz + ½ zᵀAz. It is convex, so
    that for any z̄, and any z with n ones,

        q(z) ≥ q(z̄) + ∇q(z̄)ᵀ(z - z̄) ≥ -½ z̄ᵀA z̄ + (sum of the n smallest entries of ∇q(z̄)),

    which is convex in n: no mask with q ≤ ε removes more than the last n where it is at most ε.

    *Exact*, for the quadratic as given and every z̄, converged or not: that no mask beats num_kept.
    *Of the model*: that q is the rise of the loss. It binds a quadratic on the examples it was made
    of, neither the true loss nor other examples; `shares` tells how far apart they are at a mask.
    *Rounding*: sums are in float64. The error of products is taken to be at most four times the
    largest asymmetry |xᵀ(Ay) - yᵀ(Ax)| that they showed, among them that of z̄ and the mask that
    attains the bound, which is the very sum that enters it. That is a measurement, no proof. ε is
    raised by it, and by a bound on the sums' own rounding.

    z̄ comes from accelerated projected gradient steps on q(z) - θ1ᵀz over [0, 1]ᴰ, scaled by the
    diagonal of A, of adaptive length, the price θ of a weight following the iterates. On the
    networks tried, 100 products end within 3 % of the best. Costs num_products
    products, each with a sort of D entries, and some 8 floats a live weight beside the operator.
    Weights that are zero, and with `diagonal` those without curvature and gradient, are set aside.

    Args:
        operator: B, positive semi-definite; an `Operator`, or a function from [D] to [D]. The
            Gauss-Newton matrix, or with `shift` the Hessian.
        gradient: g at w, as `curvature.mean_gradient` gives it.
        weights: w.
        epsilon: ε ≥ 0, a number or an `Estimate`, whose value is taken.
        num_products: at most so many products. Below 5 no steps are taken, and the bound is that of
            `start`, or the linear one of z̄ = 0; the last two check it.
        diagonal: that of B, exact or estimated, as `curvature.diagonal` gives it. It only steers
            the steps, and tells dead weights where it is 0; without it 8 products stand in.
        shift: μ ≥ 0 to add to the operator, where it has eigenvalues down to -μ; ½ μ wᵢ² a removed
            weight, which is the same at a mask, is taken off again. Larger is looser.
        known_kept: of the smallest mask known; the run stops within 1 % of it.
        start: a `Certificate` or a z̄ to go on from.
        on_progress: called as `on_progress("certificate", products, num_products)`.

    Returns:
        A `Certificate`. 0 kept where all weights may go, or nothing is known yet.

    Raises:
        TypeError: if a count is no static int, or the arrays are not of the operator's type.
        ValueError: if sizes differ, something is not finite, ε or `shift` is negative, or a
            direction with negative curvature was met.
        FloatingPointError: if a product was not finite.

    >>> import jax.numpy as jnp
    >>> B = jnp.array([[2.0, 1.0], [1.0, 2.0]])
    >>> found = certificate(lambda v: B @ v, jnp.zeros(2), jnp.array([3.0, 1.0]), 2.0)
    >>> found.num_kept  # without the 3 it is 9, without the 1 it is 1
    1
    """
    problem = _checked(operator, gradient, weights, epsilon, diagonal, shift)
    budget = check_count("num_products", num_products, 0)
    if known_kept is not None:
        check_count("known_kept", known_kept, 0)
    start = _checked_start(start, problem.weights)
    live = np.flatnonzero(_is_live(problem))
    if not live.size:
        return Certificate(0, 0.0, jnp.ones_like(problem.weights), 0.0, 0, 0, ())
    search = _Search(problem, live, budget, known_kept, on_progress)
    relaxed = search.relax(None if start is None else start[live])
    found, slack = search.audit(relaxed)
    kept = problem.weights.size - found.num_removed
    return Certificate(
        num_kept=kept,
        ratio=kept / problem.weights.size,
        relaxed=jnp.ones_like(problem.weights).at[live].set(relaxed, unique_indices=True),
        slack=slack,
        num_products=len(search.history),
        open=search.open,
        history=tuple(search.history),
    )


class Shares(NamedTuple):
    """What a mask takes of ε, as shares of it.

    Attributes:
        linear: -aᵀz / ε.
        quadratic: ½ zᵀAz / ε.
        remainder: (rise of the true loss - q(z)) / ε; NaN where that was not given.
    """

    linear: float
    quadratic: float
    remainder: float


@returns_local
def shares(
    operator: Any,
    gradient: Float[Array, "D"],
    weights: Float[Array, "D"],
    kept: Any,
    epsilon: Any,
    *,
    rise: float | None = None,
) -> Shares:
    """Split what a mask takes of ε into linear, quadratic and remainder.

    L(w∘m) - L(w) = -aᵀz + ½ zᵀAz + remainder, z = 1 - m. A certificate says nothing of a mask at
    which the remainder is large. Costs one product.

    Args:
        operator: B; see `certificate`.
        gradient: g.
        weights: w.
        kept: m, True = kept, flat [D].
        epsilon: ε > 0.
        rise: L(w∘m) - L(w), of the true loss.

    Returns:
        The `Shares`.

    Raises:
        TypeError: as `certificate`.
        ValueError: as `certificate`, or if ε is 0.

    >>> import jax.numpy as jnp
    >>> shares(lambda v: 2 * v, jnp.ones(2), jnp.ones(2), jnp.array([True, False]), 0.5, rise=0.25)
    Shares(linear=-2.0, quadratic=2.0, remainder=0.5)
    """
    problem = _checked(operator, gradient, weights, epsilon, None, 0.0)
    check_range("epsilon", problem.epsilon, 0, open_low=True)
    kept = np.asarray(kept)
    if kept.shape != weights.shape or kept.dtype != bool:
        raise ValueError(
            f"kept must be boolean with the shape of weights, {weights.shape}, "
            f"got {kept.dtype} {kept.shape}"
        )
    removed = jnp.where(jnp.asarray(kept), 0, weights)
    product = local(apply(problem.operator, removed), problem.operator.mesh)
    linear, quadratic = -dot(removed, gradient), dot(removed, product) / 2
    left = float("nan") if rise is None else float(rise) - linear - quadratic
    return Shares(*(part / problem.epsilon for part in (linear, quadratic, left)))


class _Problem(NamedTuple):
    """The checked arguments."""

    operator: Operator
    gradient: Float[Array, "D"]
    weights: Float[Array, "D"]
    epsilon: float
    diagonal: Float[Array, "D"] | None
    shift: float


def _checked(operator, gradient, weights, epsilon, diagonal, shift) -> _Problem:
    gradient, weights = jnp.asarray(gradient), jnp.asarray(weights)
    arrays = {"gradient": gradient, "weights": weights}
    if diagonal is not None:
        arrays["diagonal"] = diagonal = jnp.asarray(diagonal)
    for name, array in arrays.items():
        if array.shape != weights.shape or array.ndim != 1 or not array.size:
            raise ValueError(
                f"{name} must be flat, [D], like weights, {weights.shape}, got {array.shape}"
            )
        if not is_finite(array):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    epsilon = value_of(epsilon)
    if jnp.ndim(epsilon) != 0:
        raise ValueError(f"epsilon must be one number, got shape {jnp.shape(epsilon)}")
    check_range("epsilon", epsilon, 0, float(np.finfo(np.float32).max))
    check_range("shift", shift, 0, float(np.finfo(np.float32).max))
    prepared = prepare(operator, weights.size, weights.dtype)
    return _Problem(
        prepared, gradient.astype(weights.dtype), weights, float(epsilon), diagonal, float(shift)
    )


def _checked_start(start: Any, weights: Array) -> Array | None:
    if start is None:
        return None
    relaxed = jnp.asarray(start.relaxed if isinstance(start, Certificate) else start)
    if relaxed.shape != weights.shape:
        raise ValueError(
            f"start must be a Certificate or a z̄ of shape {weights.shape}, got {relaxed.shape}"
        )
    check_range("start", relaxed, 0, 1)
    return relaxed.astype(weights.dtype)


def _is_live(problem: _Problem) -> np.ndarray:
    """Mark the weights that may cost something: a PSD matrix with a zero Bᵢᵢ has a zero row i."""
    live = np.asarray(problem.weights != 0)
    if problem.diagonal is None or problem.shift:
        return live
    return live & np.asarray((problem.diagonal != 0) | (problem.gradient != 0))


def _restricted(problem: _Problem, live: np.ndarray) -> tuple[Quadratic, Array | None]:
    """Return the quadratic on the live weights, and the operator's diagonal there."""
    operator, gradient, weights, _, diagonal, shift = problem
    if live.size < weights.size:
        mask = np.zeros(weights.size, bool)
        mask[live] = True
        operator, gradient, weights = operator.restrict(mask), gradient[live], weights[live]
        diagonal = None if diagonal is None else diagonal[live]
    return Quadratic(operator, gradient, weights, shift), diagonal


class _Search:
    """One search for z̄, and what it has seen so far."""

    def __init__(self, problem: _Problem, live: np.ndarray, budget: int, known, notify) -> None:
        self.quadratic, self.diagonal = _restricted(problem, live)
        self.epsilon, self.dim = problem.epsilon, problem.weights.size
        self.num_free = self.dim - live.size
        self.budget, self.known, self.notify = budget, known, notify
        self.history: list[int] = []
        self.best, self.asymmetry = 0, 0.0
        self.seen: list[tuple[float, float]] = []  # weights removed and q, at the iterates
        self.relaxed = jnp.zeros_like(self.quadratic.weights)

    def relax(self, start: Array | None) -> Array:
        """Take steps until the products are spent or the gap is closed; return the best z̄."""
        zero = Iterate(self.relaxed, jnp.zeros_like(self.relaxed))
        price, _ = self.look(zero)
        num_probes = 0 if self.diagonal is not None else min(8, self.budget // 10 + 1)
        if self.budget < num_probes + _LEAST_BUDGET:
            return self.relaxed if start is None else start
        metric = metric_of(self.quadratic, self.diagonal, self.multiply, num_probes)
        everything = self.iterate(jnp.ones_like(self.relaxed))
        price = min(price, self.look(everything)[0])
        first = zero if start is None else self.iterate(start)
        price = price if start is None else self.look(first)[0]
        state = begin(metric, first, everything)
        price = max(price, float(np.finfo(np.float32).tiny))
        while not self.is_done():
            state = step(self.quadratic, metric, state, price, self.multiply)
            self.asymmetry = max(self.asymmetry, state.asymmetry)
            _, bend = self.look(state.latest)
            price = next_price(self.quadratic, metric, state, bend, self.epsilon, price)
        return self.relaxed

    def multiply(self, vector: Array) -> Array:
        """Return A v, count the product, and say so."""
        product = self.quadratic.multiply(vector)
        self.history.append(self.best)
        if not is_finite(product):
            raise FloatingPointError(
                f"operator returned NaN or infinity in product {len(self.history)}"
            )
        if self.notify is not None:
            self.notify("certificate", len(self.history), self.budget)
        return product

    def iterate(self, point: Array) -> Iterate:
        """Return a point with its product."""
        return Iterate(point, self.multiply(point))

    def look(self, iterate: Iterate) -> tuple[float, float]:
        """Evaluate the bound at an iterate, without slack; return its price, and zᵀAz."""
        linear = self.quadratic.linear()
        bend = dot(iterate.point, iterate.product)
        if bend < -1e-3 * dot(iterate.point, abs(iterate.product)) and not self.seen[1:]:
            raise ValueError(negative_curvature(bend / dot(iterate.point, iterate.point)))
        slope = np.asarray(iterate.product - linear)
        found = bound_of(slope, max(bend, 0), self.epsilon, self.num_free)
        kept = self.dim - found.num_removed
        if kept > self.best:
            self.best, self.relaxed = kept, iterate.point
        if self.history:
            self.history[-1] = self.best
        removed = self.num_free + dot(iterate.point, jnp.ones_like(iterate.point))
        self.seen.append((removed, bend / 2 - dot(iterate.point, linear)))
        return found.price, max(bend, 0)

    @property
    def open(self) -> int:
        """What the bound may still rise by: no z̄ gets above the relaxation's own optimum.

        The least q with n removed is convex in n, so below the chords between the points seen.
        """
        removed, rise = np.array(self.seen).T
        inside = rise <= self.epsilon
        most = removed[inside].max()
        if not inside.all():
            n, r = removed[inside, None], rise[inside, None]
            m, q = removed[~inside], rise[~inside]
            most = max(most, (n + (m - n) * (self.epsilon - r) / (q - r)).max())
        return max(0, math.ceil(self.dim - most) - self.best)

    def is_done(self) -> bool:
        """Whether products are spent, or the best mask or what can be reached is near."""
        near = self.known is not None and self.known <= (1 + KNOWN_GAP) * self.best
        return (
            len(self.history) >= self.budget - _NUM_AUDITS
            or near
            or self.open <= _OPEN_GAP * self.best
        )

    def audit(self, relaxed: Array) -> tuple[Bound, float]:
        """Evaluate the bound of one z̄ anew, in float64, with the slack for rounding."""
        moved = bool((relaxed != 0).any())
        product = self.multiply(relaxed) if moved else jnp.zeros_like(relaxed)
        slope = np.asarray(product, np.float64) - self.quadratic.exact_linear()
        curvature = max(dot(relaxed, product), 0)
        found = bound_of(slope, curvature, self.epsilon, self.num_free)
        slack = slope.size * np.finfo(np.float64).eps * float(np.abs(slope).sum() + curvature)
        if moved:
            count = min(max(found.num_removed - self.num_free, 0), slope.size)
            mask = np.zeros(slope.size)
            mask[np.argsort(slope, kind="stable")[:count]] = 1
            mask = jnp.asarray(mask, relaxed.dtype)
            seen = abs(dot(mask, product) - dot(relaxed, self.multiply(mask)))
            slack += _SAFETY * max(seen, self.asymmetry)
        return bound_of(slope, curvature, self.epsilon + slack, self.num_free), slack
