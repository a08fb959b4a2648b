"""Accelerated projected gradients for min q(z) - θ1ᵀz over [0, 1]ᴰ, a product a step.

A step from y = z + β(z - z₋) is clip(y - (∇q(y) - θ)/(ℓM)), M a diagonal metric. ℓ falls a little
in each step and is raised where a step shows more curvature, dᵀA d > ℓ dᵀM d, so the few stiff
directions set it only while they matter; that is what makes the difference on networks. Momentum
starts anew where it points uphill. The relation of q at y and at z needs no product of its own:
A y is a combination of two products at hand.

Beck, Teboulle (2009), "A fast iterative shrinkage-thresholding algorithm"; O'Donoghue, Candès
(2015), "Adaptive restart for accelerated gradient schemes".
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.operator import Operator, apply
from jaxlimit._core.sharding import local

_RAISE = 1.6
_LOWER, _LOWER_AT_FIRST = 0.92, 0.75
_PACE = 0.25
_LEAST_METRIC = 1e-9  # of its greatest entry
_ROUNDING = 32
_NEGATIVE = 1e-4  # of the stiffest direction: more than a matrix rounded to float32 shows
_CHUNK = 1 << 20


class Quadratic(NamedTuple):
    """q(z) = -aᵀz + ½ zᵀAz, a = w∘(g + ½ μ w), A = diag(w)(B + μI)diag(w)."""

    operator: Operator
    gradient: Float[Array, "S"]
    weights: Float[Array, "S"]
    shift: float

    def multiply(self, vector: Float[Array, "S"]) -> Float[Array, "S"]:
        """Return A v."""
        product = local(apply(self.operator, self.weights * vector), self.operator.mesh)
        return self.weights * (product + self.shift * self.weights * vector)

    def linear(self) -> Float[Array, "S"]:
        """Return a."""
        return _linear(self.weights, self.gradient, self.shift)

    def exact_linear(self) -> np.ndarray:
        """Return a in float64, of which a product of two float32 is exact."""
        weights, gradient = (np.asarray(x, np.float64) for x in (self.weights, self.gradient))
        return weights * (gradient + self.shift / 2 * weights)


class Iterate(NamedTuple):
    """A point z and its product A z."""

    point: Float[Array, "S"]
    product: Float[Array, "S"]


class State(NamedTuple):
    """Where the steps stand.

    Attributes:
        now: z.
        before: the one before it, z₋.
        latest: the newest iterate, which is z, or was refused as too long a step.
        momentum: t of Beck and Teboulle.
        curvature: ℓ.
        stiffest: the largest ℓ seen, the scale of what is rounding.
        refused: how many steps were.
        asymmetry: |zᵀ(A z') - z'ᵀ(A z)| of the newest iterate z' and z.
    """

    now: Iterate
    before: Iterate
    latest: Iterate
    momentum: float
    curvature: float
    stiffest: float
    refused: int
    asymmetry: float


def metric_of(
    quadratic: Quadratic, diagonal: Float[Array, "S"] | None, multiply: Callable, num_probes: int
) -> Float[Array, "S"]:
    """Return M: the diagonal of A, or the norms of its rows, seen through signs."""
    weights = quadratic.weights
    if diagonal is not None:
        metric = weights**2 * (jnp.maximum(diagonal, 0) + quadratic.shift)
    else:
        squares = jnp.zeros_like(weights)
        for probe in range(num_probes):
            key = jax.random.fold_in(jax.random.key(0), probe)
            squares += multiply(jax.random.rademacher(key, weights.shape, weights.dtype)) ** 2
        metric = jnp.sqrt(squares / num_probes)
    largest = metric.max()
    return jnp.maximum(metric / jnp.where(largest > 0, largest, 1), _LEAST_METRIC)


def begin(metric: Float[Array, "S"], start: Iterate, everything: Iterate) -> State:
    """Return the state at a first iterate, with ℓ as seen where everything is removed."""
    curvature = dot(everything.point, everything.product) / float(metric.sum())
    curvature = max(curvature, float(np.finfo(np.float32).tiny))
    return State(start, start, start, 1.0, curvature, curvature, 0, 0.0)


def step(
    quadratic: Quadratic,
    metric: Float[Array, "S"],
    state: State,
    price: float,
    multiply: Callable[[Array], Array],
) -> State:
    """Take one step at θ = `price`, or find that it was too long.

    Raises:
        ValueError: if it was along a direction of negative curvature.
    """
    t = (1 + np.sqrt(1 + 4 * state.momentum**2)) / 2
    at = (state.now, state.before, (state.momentum - 1) / t, metric)
    linear = quadratic.weights, quadratic.gradient, quadratic.shift
    point = _propose(*at, linear, price, state.curvature)
    trial = Iterate(point, multiply(point))
    seen, squared, noise, uphill = map(float, _compare(*at, trial))
    if seen < -noise - _NEGATIVE * state.stiffest * squared:
        raise ValueError(negative_curvature(seen / squared))
    back = dot(state.now.point, trial.product) - dot(trial.point, state.now.product)
    state = state._replace(latest=trial, asymmetry=abs(back))
    if seen > state.curvature * squared + noise:
        curvature = max(_RAISE * state.curvature, seen / squared)
        stiffest = max(curvature, state.stiffest)
        return state._replace(curvature=curvature, stiffest=stiffest, refused=state.refused + 1)
    lower = _LOWER if state.refused else _LOWER_AT_FIRST
    return state._replace(
        now=trial,
        before=state.now,
        momentum=1.0 if uphill > 0 else t,
        curvature=lower * state.curvature,
    )


def negative_curvature(quotient: float) -> str:
    """Say what is wrong with an operator, and what would do."""
    return (
        "operator must be positive semi-definite, but a direction has the Rayleigh quotient "
        f"{quotient:.3g} in it: take curvature.gauss_newton_matvec of a convex output loss, or "
        "shift= at least as large as the most negative eigenvalue of the operator"
    )


def _linear(weights: Array, gradient: Array, shift: float) -> Array:
    return weights * (gradient + shift / 2 * weights)


@jax.jit
def _propose(now, before, beta, metric, linear, price, curvature):
    point, product = _extrapolate(now, before, beta)
    slope = product - _linear(*linear) - price
    return jnp.clip(point - slope / (curvature * metric), 0, 1)


def next_price(
    quadratic: Quadratic,
    metric: Float[Array, "S"],
    state: State,
    bend: float,
    epsilon: float,
    price: float,
) -> float:
    """Return the price of the next step, from the newest iterate, which one at `price` led to.

    With z = θv and τ = 1/θ, the bound of the number removed is the least over θ of

        F(v, τ) = ετ + vᵀAv/(2τ) + Σ (1 + aτ - A v)₊,

    jointly convex in v and τ. The best price for this v is where ∂F/∂τ = 0, the terms of the sum
    counted by where a step takes z in place of 0 or 1, so it rests only where q(z) = ε. (The
    best price for z as it stands rests where nothing is best.) An iterate lags behind its price, so
    that a quarter of the way is gone, in the logarithm.

    Args:
        quadratic: q.
        metric: M.
        state: of its newest iterate z.
        bend: zᵀA z.
        epsilon: ε.
        price: θ.
    """
    linear = quadratic.weights, quadratic.gradient, quadratic.shift
    scale = state.curvature, metric
    moved = float(_best_price(linear, state.latest, scale, bend / 2, epsilon, price))
    return max(price * moved**_PACE, float(np.finfo(np.float32).tiny))


@jax.jit
def _best_price(linear, iterate, scale, half_bend, epsilon, price):
    linear, (curvature, metric) = _linear(*linear), scale

    def halve(_, ends):
        t = jnp.exp(ends.sum() / 2)
        slope = t * iterate.product - linear - t * price
        point = jnp.clip(iterate.point - slope / (curvature * metric), 0, 1)
        too_cheap = epsilon - t**2 * half_bend + jnp.vdot(linear, point) > 0
        return jnp.where(too_cheap, ends.at[0].set(ends.sum() / 2), ends.at[1].set(ends.sum() / 2))

    ends = jnp.log(jnp.array([1 / 8, 8], iterate.point.dtype))
    return jnp.exp(jax.lax.fori_loop(0, 20, halve, ends).sum() / 2)


@jax.jit
def _compare(now, before, beta, metric, trial):
    """Return dᵀA d, dᵀM d and the rounding of the first, d the step, and whether it goes uphill."""
    point, product = _extrapolate(now, before, beta)
    change = trial.point - point
    seen = jnp.vdot(change, trial.product - product)
    size = jnp.vdot(jnp.abs(change), jnp.abs(trial.product) + jnp.abs(product))
    uphill = -jnp.vdot(metric * change, trial.point - now.point)
    noise = _ROUNDING * jnp.finfo(change.dtype).eps * size
    return seen, jnp.vdot(change * metric, change), noise, uphill


def _extrapolate(now: Iterate, before: Iterate, beta: float) -> Iterate:
    return jax.tree.map(lambda new, old: new + beta * (new - old), now, before)


def dot(x: Array, y: Array) -> float:
    """Sum products in float64, a piece at a time."""
    one, other = np.asarray(x), np.asarray(y)
    total = 0.0
    for i in range(0, one.size, _CHUNK):
        wide = one[i : i + _CHUNK].astype(np.float64)
        total += float(np.dot(wide, other[i : i + _CHUNK].astype(np.float64)))
    return total
