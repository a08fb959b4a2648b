"""The limit from below: a bound that no mask within ε of a convex quadratic can beat."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.estimate import value_of
from jaxlimit._core.operator import apply, prepare, returns_local
from jaxlimit._core.sharding import local
from jaxlimit._core.summaries import short_repr
from jaxlimit._core.weights import check_kept, flat_vectors
from jaxlimit.limits._relaxation import dot
from jaxlimit.limits._search import Problem, Search, is_live


class Certificate(NamedTuple):
    """A number of weights below which no mask stays within ε of the quadratic.

    Attributes:
        num_kept: every mask within ε keeps at least this many weights.
        ratio: num_kept / D.
        relaxed: the z̄ [D] that proves it, 1 = removed; one product and a sort verify it.
        slack: what was added to ε for rounding.
        num_products: products made in this run.
        open: about how many weights more products may add to num_kept. A remaining gap between
            num_kept + open and a mask is due to the relaxation, or to the mask.
        history: num_kept after each product.
    """

    num_kept: int
    ratio: float
    relaxed: Float[Array, "D"]
    slack: float
    num_products: int
    open: int
    history: tuple[int, ...]

    def __repr__(self) -> str:
        """Show the bound in one line."""
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
    A = diag(w) B diag(w). The model of the rise of the loss is q(z) = -aᵀz + ½ zᵀAz. It is convex:
    for any z̄, and any z with n ones,

        q(z) ≥ q(z̄) + ∇q(z̄)ᵀ(z - z̄) ≥ -½ z̄ᵀA z̄ + (sum of the n smallest entries of ∇q(z̄)),

    The right side is convex in n, so no mask with q ≤ ε removes more than the last n where it is at
    most ε.

    *Exact*: no mask beats num_kept, for the quadratic as given and for every z̄, converged or not.
    *A model*: q stands for the rise of the loss. The bound holds for a quadratic on these examples,
    neither for the true loss nor for other examples; `shares` measures the difference at a mask.
    *Rounding*: sums are in float64. The error of products is taken to be at most four times the
    largest asymmetry |xᵀ(Ay) - yᵀ(Ax)| that was seen. One of these pairs is z̄ and the mask that
    attains the bound, whose product enters the bound itself. This is a measurement, not a proof. It
    is added to ε, and so is a bound on the rounding of the sums.

    z̄ comes from accelerated projected gradient steps on q(z) - θ1ᵀz over [0, 1]ᴰ, scaled by the
    diagonal of A, of adaptive length; the price θ of a weight follows the iterates. On the networks
    tried, 100 products end within 3 % of the best. Costs num_products products, each with a sort of
    D entries. Memory, besides the operator, its argument and result, and the arguments: 6 floats a
    live weight, on the host (6.8 measured). Zero weights are set aside, and with `diagonal` those
    without curvature and gradient.

    That B is positive semi-definite is checked where it is cheap: at z = 1, along each step, and by
    up to 8 Lanczos steps from a random start if there are 40 products or more and no `start`. These
    checks find negative eigenvalues that are not small relative to the largest; smaller ones may
    stay unnoticed.

    Args:
        operator: B, positive semi-definite; an `Operator`, or a function from [D] to [D]. The
            Gauss-Newton matrix, or with `shift` the Hessian.
        gradient: g at w, as `curvature.mean_gradient` gives it.
        weights: w.
        epsilon: ε ≥ 0, a number or an `Estimate`, whose value is used.
        num_products: the most products. Below 5 no steps are taken, and the bound is that of
            `start`, or the linear one of z̄ = 0; the last two products verify it.
        diagonal: the diagonal of B, exact or estimated, from `curvature.diagonal`. It only steers
            the steps, and weights where it is 0 are set aside; without it 8 products replace it.
        shift: μ ≥ 0, added to an operator that has eigenvalues down to -μ. At a mask it adds
            exactly ½ μ wᵢ² for each removed weight, which is subtracted again. A larger μ gives a
            looser bound.
        known_kept: weights kept by the smallest mask known; the run stops within 1 % of it.
        start: a `Certificate` or a z̄ to continue from.
        on_progress: called as `on_progress("certificate", products, num_products)`.

    Returns:
        A `Certificate`; `num_kept` is 0 if all weights may go, or if nothing is known yet.

    Raises:
        TypeError: if a count is no static int, or the arrays are not of the operator's type.
        ValueError: if sizes differ, something is not finite, ε is negative or not one number,
            `shift` is negative, or a direction of negative curvature was met.
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
    live = is_live(problem)
    if not live.any():
        return Certificate(0, 0.0, jnp.ones_like(problem.weights), 0.0, 0, 0, ())
    search = Search(problem, live, budget, known_kept, on_progress)
    start = None if start is None else np.asarray(start)[live]
    del live  # a quarter of a float a weight
    relaxed = search.relax(start)
    found, slack = search.audit(relaxed)
    kept = problem.weights.size - found.num_removed
    whole = np.ones(weights.shape, relaxed.dtype)
    whole[is_live(problem)] = relaxed
    return Certificate(
        num_kept=kept,
        ratio=kept / problem.weights.size,
        relaxed=jnp.asarray(whole),
        slack=slack,
        num_products=len(search.history),
        open=search.open,
        history=tuple(search.history),
    )


class Shares(NamedTuple):
    """How much of ε a mask uses, as shares of ε.

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
    """Split the part of ε that a mask uses into linear, quadratic and remainder.

    L(w∘m) - L(w) = -aᵀz + ½ zᵀAz + remainder, z = 1 - m. Where the remainder is large, a
    certificate says nothing about the mask. Costs one product.

    Args:
        operator: B; see `certificate`.
        gradient: g.
        weights: w.
        kept: m, True = kept, flat [D].
        epsilon: ε > 0.
        rise: L(w∘m) - L(w), of the true loss; None leaves the remainder NaN.

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
    removed = jnp.where(check_kept("kept", kept, problem.weights.size), 0, problem.weights)
    product = local(apply(problem.operator, removed), problem.operator.mesh)
    linear, quadratic = -dot(removed, problem.gradient), dot(removed, product) / 2
    left = float("nan") if rise is None else float(rise) - linear - quadratic
    return Shares(*(part / problem.epsilon for part in (linear, quadratic, left)))


def _checked(operator, gradient, weights, epsilon, diagonal, shift) -> Problem:
    gradient, weights = flat_vectors(gradient=gradient, weights=weights)
    if diagonal is not None:
        diagonal, _ = flat_vectors(diagonal=diagonal, weights=weights)
    epsilon = value_of(epsilon)
    if jnp.ndim(epsilon) != 0:
        raise ValueError(f"epsilon must be one number, got shape {jnp.shape(epsilon)}")
    check_range("epsilon", epsilon, 0, float(np.finfo(np.float32).max))
    check_range("shift", shift, 0, float(np.finfo(np.float32).max))
    prepared = prepare(operator, weights.size, weights.dtype)
    return Problem(
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
