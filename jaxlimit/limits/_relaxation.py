"""Accelerated projected gradients for min q(z) - θ1ᵀz over [0, 1]ᴰ, a product a step.

A step from y = z + β(z - z₋) is clip(y - (∇q(y) - θ)/(ℓM)), M a diagonal metric. ℓ falls a little
in each step and rises where a step shows more curvature, dᵀA d > ℓ dᵀM d. So the few stiff
directions determine it only while they matter, which is decisive on networks. Momentum restarts
where it points uphill. A y needs no product of its own: it is a combination of A z and A z₋.

Everything is done in place on the host, a piece at a time: z, z₋ and their products are the four
vectors that are kept. The new point is made once for its product and again for its evaluation,
which is cheaper than keeping it while the operator works.

Beck, Teboulle (2009); O'Donoghue, Candès (2015) for the restarts.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
_PIECE = 1 << 18
_HALVINGS = 12

Vector = Float[np.ndarray, "S"]


class Quadratic(NamedTuple):
    """q(z) = -aᵀz + ½ zᵀAz, a = w∘(g + ½ μ w), A = diag(w)(B + μI)diag(w)."""

    operator: Operator
    gradient: Vector
    weights: Vector
    shift: float

    def apply(self, argument: Vector) -> Vector:
        """Return B v for v = w∘z, on the host."""
        product = local(apply(self.operator, jnp.asarray(argument)), self.operator.mesh)
        return np.asarray(product)

    def scaled(self, product: Vector, argument: Vector, at: slice = slice(None)) -> Vector:
        """Return A z from B v and v = w∘z."""
        result = product[at] + self.shift * argument if self.shift else product[at].copy()
        result *= self.weights[at]
        return result

    def linear(self, at: slice = slice(None), dtype: Any = None) -> Vector:
        """Return a; in float64 a product of two float32 is exact."""
        weights, gradient = (x[at].astype(dtype or x.dtype) for x in (self.weights, self.gradient))
        return weights * (gradient + self.shift / 2 * weights)


def pieces(size: int) -> Iterator[slice]:
    """Cut a vector into slices that stay in the cache."""
    return (slice(i, i + _PIECE) for i in range(0, size, _PIECE))


class Seen(NamedTuple):
    """The numbers of q at one point z.

    Attributes:
        removed: Σz.
        bend: zᵀA z.
        linear: aᵀz.
        slope: A z - a; the reader may keep or change it.
    """

    removed: float
    bend: float
    linear: float
    slope: Vector


class _Told(NamedTuple):
    """The settings of a trial: the momentum's share, the price, and ℓ."""

    beta: float
    price: float
    curvature: float


class _Sums(NamedTuple):
    """Sums over a trial z' and the step d from y to it: dᵀA d, dᵀM d, the first's rounding, ..."""

    bent: float
    squared: float
    noise: float
    uphill: float
    asymmetry: float
    removed: float
    bend: float
    linear: float


class Steps:
    """The iterates of one search; see the module.

    Attributes:
        point: z.
        product: A z.
        curvature: ℓ.
        asymmetry: the largest |zᵀ(A z') - z'ᵀ(A z)| of the newest iterates z and z'.
    """

    def __init__(
        self, quadratic: Quadratic, metric: Vector, point: Vector, product: Vector, bend: float
    ) -> None:
        """Start from a point; `bend` is 1ᵀA 1, which sets ℓ at first."""
        self.quadratic, self.metric = quadratic, metric
        ends = map(float, (metric[at].astype(np.float64).sum() for at in pieces(metric.size)))
        curvature = bend / sum(ends)
        self.point, self.product = np.array(point), np.array(product)
        self.before_point, self.before_product = self.point.copy(), self.product.copy()
        self.curvature = self.stiffest = max(curvature, float(np.finfo(np.float32).tiny))
        self.momentum, self.asymmetry = 1.0, 0.0
        self.refused = False

    def step(
        self, price: float, epsilon: float, apply: Callable[[Vector], Vector]
    ) -> tuple[Seen, Callable[[slice], Vector], float]:
        """Take one step at θ = `price`; raise ℓ and keep the point if it was too long.

        Args:
            price: θ.
            epsilon: ε.
            apply: the product with B.

        Returns:
            The numbers of q at its end, a function that makes the end piece by piece (until the
            next step), and the price of the next step.

        Raises:
            ValueError: if its direction has negative curvature.
        """
        momentum = (1 + np.sqrt(1 + 4 * self.momentum**2)) / 2
        told = _Told((self.momentum - 1) / momentum, price, self.curvature)
        raw = apply(self._argument(told))
        sums = self._compare(told, raw)
        if sums.bent < -sums.noise - _NEGATIVE * self.stiffest * sums.squared:
            raise ValueError(negative_curvature(sums.bent / sums.squared))
        self.asymmetry = max(self.asymmetry, sums.asymmetry)
        if sums.bent > self.curvature * sums.squared + sums.noise:
            self.curvature = max(_RAISE * self.curvature, sums.bent / sums.squared)
            self.stiffest = max(self.curvature, self.stiffest)
            self.refused = True
            latest = lambda at: self._trial(told, raw, at)  # noqa: E731
        else:
            self._accept(told, raw)
            del raw
            self.momentum = 1.0 if sums.uphill > 0 else momentum
            self.curvature *= _LOWER if self.refused else _LOWER_AT_FIRST
            latest = lambda at: (self.point[at], self.product[at])  # noqa: E731
        price = self._next_price(latest, max(sums.bend, 0), epsilon, price)
        slope = np.empty_like(self.point)
        for at in pieces(slope.size):
            slope[at] = latest(at)[1] - self.quadratic.linear(at)
        return Seen(sums.removed, sums.bend, sums.linear, slope), lambda at: latest(at)[0], price

    def _moved(self, told: _Told, at: slice) -> tuple[Vector, Vector, Vector]:
        """Return y, A y and the point that a step leads to."""
        beta = self.point.dtype.type(told.beta)
        y = self.point[at] + beta * (self.point[at] - self.before_point[at])
        product = self.product[at] + beta * (self.product[at] - self.before_product[at])
        slope = product - self.quadratic.linear(at) - self.point.dtype.type(told.price)
        return y, product, np.clip(y - slope / self._scale(told.curvature, at), 0, 1)

    def _scale(self, curvature: float, at: slice) -> Vector:
        return self.point.dtype.type(curvature) * self.metric[at].astype(self.point.dtype)

    def _argument(self, told: _Told) -> Vector:
        argument = np.empty_like(self.point)
        for at in pieces(argument.size):
            argument[at] = self.quadratic.weights[at] * self._moved(told, at)[2]
        return argument

    def _trial(self, told: _Told, raw: Vector, at: slice) -> tuple[Vector, Vector]:
        """Return the new point and its product."""
        point = self._moved(told, at)[2]
        return point, self.quadratic.scaled(raw, self.quadratic.weights[at] * point, at)

    def _compare(self, told: _Told, raw: Vector) -> _Sums:
        """Sum what decides whether a trial is accepted, and the numbers of q at its end."""
        total = np.zeros(len(_Sums._fields) + 1)
        for at in pieces(self.point.size):
            y, product, point = (x.astype(np.float64) for x in self._moved(told, at))
            new = self._trial(told, raw, at)[1].astype(np.float64)
            change, metric = point - y, self.metric[at].astype(np.float64)
            total += (
                change @ (new - product),
                change @ (metric * change),
                np.abs(change) @ (np.abs(new) + np.abs(product)),
                -(metric * change) @ (point - self.point[at]),
                self.point[at] @ new,
                point @ self.product[at],
                point.sum(),
                point @ new,
                point @ self.quadratic.linear(at),
            )
        bent, squared, size, uphill, forth, back, *rest = total.tolist()
        noise = _ROUNDING * float(jnp.finfo(self.point.dtype).eps) * size
        return _Sums(bent, squared, noise, uphill, abs(forth - back), *rest)

    def _accept(self, told: _Told, raw: Vector) -> None:
        for at in pieces(self.point.size):
            point, product = self._trial(told, raw, at)
            self.before_point[at], self.before_product[at] = self.point[at], self.product[at]
            self.point[at], self.product[at] = point, product

    def _next_price(self, latest: Callable, bend: float, epsilon: float, price: float) -> float:
        """Return the price of the next step, from the newest iterate, which one at `price` led to.

        With z = θv and τ = 1/θ, the bound of the number removed is the least over θ of

            F(v, τ) = ετ + vᵀAv/(2τ) + Σ (1 + aτ - A v)₊,

        jointly convex in v and τ. The best price for this v is where ∂F/∂τ = 0. There each term of
        the sum counts by the value that a step would give z, not by 0 or 1, so the price comes to
        rest only where q(z) = ε. (The best price for z itself also rests where z is not optimal.)
        Since an iterate lags behind its price, only a quarter of the way is taken, in the
        logarithm.
        """
        low, high = np.log(1 / 8), np.log(8)
        for _ in range(_HALVINGS):
            t = float(np.exp((low + high) / 2))
            taken = sum(self._taken(latest, t, price, at) for at in pieces(self.point.size))
            too_cheap = epsilon - t**2 * bend / 2 + taken > 0
            low, high = ((low + high) / 2, high) if too_cheap else (low, (low + high) / 2)
        moved = float(np.exp((low + high) / 2))
        return max(price * moved**_PACE, float(np.finfo(np.float32).tiny))

    def _taken(self, latest: Callable, t: float, price: float, at: slice) -> float:
        point, product = latest(at)
        linear = self.quadratic.linear(at)
        slope = self.point.dtype.type(t) * (product - self.point.dtype.type(price)) - linear
        point = np.clip(point - slope / self._scale(self.curvature, at), 0, 1)
        return float(np.dot(linear, point))


def metric_of(
    quadratic: Quadratic, diagonal: Vector | None, multiply: Callable, num_probes: int
) -> Vector:
    """Return M: the diagonal of A, or the norms of its rows, estimated with random signs.

    In bfloat16: M only steers the steps, so half of a float is enough.
    """
    weights = quadratic.weights
    if diagonal is not None:
        metric = np.maximum(diagonal, 0).astype(weights.dtype)
        metric += weights.dtype.type(quadratic.shift)
        metric *= weights
        metric *= weights
    else:
        metric = np.zeros_like(weights)
        rng = np.random.default_rng(0)
        for _ in range(num_probes):
            signs = 2 * rng.integers(0, 2, weights.size, np.int8) - 1
            # No square, which may leave the range of the type.
            np.hypot(metric, multiply(signs.astype(weights.dtype)), out=metric)
    largest = metric.max()
    metric /= largest if largest > 0 else 1
    return np.maximum(metric, _LEAST_METRIC, out=metric).astype(jnp.bfloat16)


def look_for_negative(multiply: Callable[[Vector], Vector], like: Vector, num_steps: int) -> None:
    """Take a few Lanczos steps on A from a random start, and check the Ritz values.

    The steps of a search may all avoid a direction of negative curvature; the bound of a quadratic
    that is not convex would then go unnoticed. A random start has a part in every direction, so a
    few steps find negative curvature that is not small relative to the spectrum.

    Raises:
        ValueError: if one is negative by more than rounding.
    """
    vector = np.random.default_rng(1).standard_normal(like.size, np.float32).astype(like.dtype)
    vector /= np.sqrt(dot(vector, vector))
    before, beta = np.zeros_like(vector), 0.0
    diagonal, off = [], []
    for _ in range(min(num_steps, like.size)):
        product = multiply(vector)
        product -= like.dtype.type(beta) * before
        diagonal.append(dot(vector, product))
        product -= like.dtype.type(diagonal[-1]) * vector
        beta = np.sqrt(dot(product, product))
        off.append(beta)
        if beta <= 1e-5 * max(map(abs, diagonal)):
            break
        before, vector = vector, product / like.dtype.type(beta)
    matrix = np.diag(diagonal) + np.diag(off[: len(diagonal) - 1], 1)
    values = np.linalg.eigvalsh(matrix, UPLO="U")
    if values[0] < -_NEGATIVE * abs(values).max():
        raise ValueError(negative_curvature(values[0]))


def negative_curvature(quotient: float) -> str:
    """Say what is wrong with an operator, and what to use instead."""
    return (
        "operator must be positive semi-definite, but a direction has the Rayleigh quotient "
        f"{quotient:.3g} in it, scaled by the weights: take curvature.gauss_newton_matvec of a "
        "convex output loss, or shift= at least as large as the most negative eigenvalue of the "
        "operator"
    )


def all_finite(vector: Vector) -> bool:
    """Say whether a vector is finite, without a temporary of its size."""
    return all(bool(np.isfinite(vector[at]).all()) for at in pieces(vector.size))


def dot(x: Any, y: Array | Vector) -> float:
    """Sum products in float64, a piece at a time."""
    one, other = np.asarray(x), np.asarray(y)
    return float(
        sum(one[at].astype(np.float64) @ other[at].astype(np.float64) for at in pieces(one.size))
    )
