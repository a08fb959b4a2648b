"""The search for the z̄ that proves the most, and the check of what it proves."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.operator import Operator
from jaxlimit.limits._bound import Bound, bound_of
from jaxlimit.limits._relaxation import (
    Quadratic,
    Seen,
    Steps,
    all_finite,
    dot,
    look_for_negative,
    metric_of,
    negative_curvature,
    pieces,
)

# Stop where the best mask known, or the possible gain, is within these shares of the bound.
KNOWN_GAP = 0.01
_OPEN_GAP = 1e-3
# Rounding is taken to be at most this many times the largest asymmetry that products showed.
_SAFETY = 4.0
# Products of the last check: z̄ again, and the mask that attains its bound. Fewer than the other
# leave no step between them.
_NUM_AUDITS = 2
_LEAST_BUDGET = _NUM_AUDITS + 2
# With fewer products, none is used to look for negative curvature.
_LEAST_PROBED = 40
_FINEST = np.iinfo(np.uint16).max


class Problem(NamedTuple):
    """The checked arguments."""

    operator: Operator
    gradient: Float[Array, "D"]
    weights: Float[Array, "D"]
    epsilon: float
    diagonal: Float[Array, "D"] | None
    shift: float


def is_live(problem: Problem) -> np.ndarray:
    """Mark the weights that may change q: a PSD matrix with a zero Bᵢᵢ has a zero row i."""
    weights, gradient = np.asarray(problem.weights), np.asarray(problem.gradient)
    live = np.empty(weights.shape, bool)
    known = problem.diagonal is not None and not problem.shift
    diagonal = np.asarray(problem.diagonal) if known else weights
    for at in pieces(live.size):
        live[at] = (weights[at] != 0) & ((diagonal[at] != 0) | (gradient[at] != 0))
    return live


def _restricted(problem: Problem, live: np.ndarray) -> tuple[Quadratic, np.ndarray | None]:
    """Return the quadratic on the live weights, and the operator's diagonal there."""
    operator = problem.operator
    gradient, weights = np.asarray(problem.gradient), np.asarray(problem.weights)
    diagonal = None if problem.diagonal is None else np.asarray(problem.diagonal)
    if not live.all():
        operator, gradient, weights = operator.restrict(live), gradient[live], weights[live]
        diagonal = None if diagonal is None else diagonal[live]
    return Quadratic(operator, gradient, weights, problem.shift), diagonal


class Search:
    """One search for z̄, and what it has seen so far."""

    def __init__(self, problem: Problem, live: np.ndarray, budget: int, known, notify) -> None:
        self.quadratic, self.diagonal = _restricted(problem, live)
        self.epsilon, self.dim = problem.epsilon, problem.weights.size
        self.num_free = self.dim - self.quadratic.weights.size
        self.budget, self.known, self.notify = budget, known, notify
        self.history: list[int] = []
        self.best, self.asymmetry = 0, 0.0
        self.seen: list[tuple[float, float]] = []  # weights removed and q, at the iterates
        self.finest = np.zeros(self.quadratic.weights.shape, np.uint16)

    def relax(self, start: np.ndarray | None) -> np.ndarray:
        """Take steps until the products are used up or the gap is closed; return the best z̄."""
        quadratic, like = self.quadratic, self.quadratic.weights
        price = self.look_at_zero()
        num_probes = 0 if self.diagonal is not None else min(8, self.budget // 10 + 1)
        if self.budget < num_probes + _LEAST_BUDGET:
            return np.zeros_like(like) if start is None else start
        if start is None and self.budget >= _LEAST_PROBED:
            look_for_negative(self.multiply, like, min(8, self.budget // 10))
        metric = metric_of(quadratic, self.diagonal, self.multiply, num_probes)
        self.diagonal = None
        steps, price = self.begin(metric, start, price)
        del metric, start
        while not self.is_done():
            seen, point_at, price = steps.step(price, self.epsilon, self.apply)
            self.asymmetry = steps.asymmetry
            self.look(seen, point_at)
            del seen, point_at
        del steps
        relaxed = self.finest.astype(like.dtype)
        self.finest = np.zeros(0, np.uint16)
        relaxed /= like.dtype.type(_FINEST)
        return relaxed

    def begin(
        self, metric: np.ndarray, start: np.ndarray | None, price: float
    ) -> tuple[Steps, float]:
        """Evaluate z = 1 and set up the start; return the first price too."""
        ones = np.ones_like(self.quadratic.weights)
        product = self.multiply(ones)
        price = min(price, self.look_at(ones, product))
        bend = dot(ones, product)
        del ones, product
        if start is None:
            point = product = np.zeros_like(self.quadratic.weights)
        else:
            point, product = start, self.multiply(start)
            price = self.look_at(start, product)
        price = max(price, float(np.finfo(np.float32).tiny))
        return Steps(self.quadratic, metric, point, product, bend), price

    def apply(self, argument: np.ndarray) -> np.ndarray:
        """Return B v; count the product and report progress."""
        product = self.quadratic.apply(argument)
        self.history.append(self.best)
        if not all_finite(product):
            raise FloatingPointError(
                f"operator returned NaN or infinity in product {len(self.history)}"
            )
        if self.notify is not None:
            self.notify("certificate", len(self.history), self.budget)
        return product

    def multiply(self, point: np.ndarray) -> np.ndarray:
        """Return A z."""
        argument = self.quadratic.weights * point
        return self.quadratic.scaled(self.apply(argument), argument)

    def look_at(self, point: np.ndarray, product: np.ndarray) -> float:
        """Evaluate the bound at a point with its product; return its price."""
        bend, size, linear = dot(point, product), 0.0, 0.0
        slope = np.empty_like(product)
        for at in pieces(slope.size):
            a = self.quadratic.linear(at)
            slope[at] = product[at] - a
            size, linear = size + dot(point[at], abs(product[at])), linear + dot(point[at], a)
        if bend < -1e-3 * size:
            raise ValueError(negative_curvature(bend / dot(point, point)))
        removed = float(point.sum(dtype=np.float64))
        return self.look(Seen(removed, bend, linear, slope), lambda at: point[at])

    def look_at_zero(self) -> float:
        """Evaluate the bound at z = 0, which is the linear one."""
        slope = np.empty_like(self.quadratic.weights)
        for at in pieces(slope.size):
            slope[at] = -self.quadratic.linear(at)
        return self.look(Seen(0.0, 0.0, 0.0, slope), lambda at: np.zeros_like(slope[at]))

    def look(self, seen: Seen, point_at: Callable[[slice], np.ndarray]) -> float:
        """Evaluate the bound, without slack; return its price."""
        found = bound_of(seen.slope, max(seen.bend, 0), self.epsilon, self.num_free)
        kept = self.dim - found.num_removed
        if kept > self.best:
            self.best = kept
            for at in pieces(self.finest.size):
                # Any z̄ proves a bound, and near the maximum rounding to 16 bits hardly lowers it.
                self.finest[at] = np.rint(point_at(at) * _FINEST)
        if self.history:
            self.history[-1] = self.best
        self.seen.append((self.num_free + seen.removed, seen.bend / 2 - seen.linear))
        return found.price

    @property
    def open(self) -> int:
        """Return how much the bound may still rise: no z̄ exceeds the relaxation's optimum.

        The least q with n removed is convex in n, hence below the chords between the points seen.
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
        """Whether products are used up, or the bound is near the best mask or its own maximum."""
        near = self.known is not None and self.known <= (1 + KNOWN_GAP) * self.best
        return (
            len(self.history) >= self.budget - _NUM_AUDITS
            or near
            or self.open <= _OPEN_GAP * self.best
        )

    def audit(self, relaxed: np.ndarray) -> tuple[Bound, float]:
        """Evaluate the bound of one z̄ again, in float64, with the slack for rounding."""
        moved = bool((relaxed != 0).any())
        product = self.multiply(relaxed) if moved else np.zeros_like(relaxed)
        curvature = max(dot(relaxed, product), 0)
        ordered = np.empty(product.shape)
        for at in pieces(ordered.size):
            ordered[at] = self._exact_slope(product, at)
        found = bound_of(ordered, curvature, self.epsilon, self.num_free)
        size = sum(float(np.abs(ordered[at]).sum()) for at in pieces(ordered.size)) + curvature
        slack = ordered.size * np.finfo(np.float64).eps * size
        if moved:
            count = min(max(found.num_removed - self.num_free, 0), ordered.size)
            mask = self._smallest(product, ordered, count)
            forth, back = dot(mask, product), 0.0
            mask *= self.quadratic.weights
            raw = self.apply(mask)
            for at in pieces(mask.size):
                back += dot(relaxed[at], self.quadratic.scaled(raw, mask[at], at))
            slack += _SAFETY * max(abs(forth - back), self.asymmetry)
        return bound_of(ordered, curvature, self.epsilon + slack, self.num_free), slack

    def _exact_slope(self, product: np.ndarray, at: slice) -> np.ndarray:
        return product[at] - self.quadratic.linear(at, np.float64)

    def _smallest(self, product: np.ndarray, ordered: np.ndarray, count: int) -> np.ndarray:
        """Mark the `count` smallest entries of the slope with 1, the first among equals."""
        mask = np.zeros_like(product)
        last = ordered[count - 1] if count else -np.inf
        ties = count - int(np.searchsorted(ordered, last))
        for at in pieces(mask.size):
            slope = self._exact_slope(product, at)
            mask[at] = slope < last
            equal = at.start + np.flatnonzero(slope == last)[:ties]
            mask[equal] = 1
            ties -= equal.size
        return mask
