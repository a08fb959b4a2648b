"""Refit what a mask keeps on the true loss, by damped Gauss-Newton steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit import curvature, limits
from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.masks import flat_mask
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, is_weight
from jaxlimit.curvature import Split
from jaxlimit.pruning.masked import MaskedLoss, loss_at, masked_loss

# The damping at the start, as a share of the Rayleigh quotient along the gradient, and the factors
# by which it falls and grows.
_DAMPING = 1e-2
_EASE, _STIFFEN = 0.2, 5.0
_MOST_TRIES = 12


class RefittedNetwork(NamedTuple):
    """A pruned network whose kept weights are refitted.

    Attributes:
        params: the parameters, 0 where the mask is False.
        loss: the true loss there, no higher than without refitting.
        losses: the loss before, and after each step.
        num_products: total number of curvature products.
    """

    params: Any
    loss: float
    losses: tuple[float, ...]
    num_products: int


@takes_mesh
def refit(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    mask: Any,
    num_rounds: int = 10,
    num_steps: int = 30,
    tolerance: float = 1e-3,
    where: Where = is_weight,
    mesh: Mesh | None = None,
) -> RefittedNetwork:
    """Minimise the true loss over the kept weights, from where they are.

    Levenberg-Marquardt: a round takes the step of `limits.refit` with the Gauss-Newton matrix at
    the current weights (the Hessian where the loss is not split) and damping μ. A step that does
    not lower the loss is not taken, and μ grows. Deterministic, over all examples, without
    penalties. Costs a gradient and num_steps + 3 products a round, and a loss for each step tried.

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples.
        params: pytree of real floating arrays.
        batches: see `curvature.hessian_matvec`.
        *operands: passed on to `loss`.
        mask: pytree like `params` of Booleans, True = kept.
        num_rounds: the most rounds.
        num_steps: the most conjugate gradient steps in a round.
        tolerance: stop where a step lowers the loss by less than this share.
        where: which leaves are under study; the others stay as they are.
        mesh: devices to share the examples; see `magnitude_sweep`.

    Returns:
        A `RefittedNetwork`.

    Raises:
        TypeError: as `magnitude_sweep`.
        ValueError: as `magnitude_sweep`, or if `mask` has another structure or other shapes than
            `params`.
        FloatingPointError: if the loss is not finite at the masked weights.

    >>> import jax.numpy as jnp
    >>> from jaxlimit.curvature import split_loss
    >>> loss = split_loss(lambda w, x: x @ w - 3, lambda y, x: 0.5 * jnp.mean(y**2))
    >>> x, mask = jnp.ones((1, 4, 2)), jnp.array([True, False])
    >>> refitted = refit(loss, jnp.array([1.0, 2.0]), x, mask=mask).params
    >>> jnp.allclose(refitted, jnp.array([3.0, 0.0]))
    Array(True, dtype=bool)

    Levenberg (1944); Marquardt (1963); Martens (2010).
    """
    for name, count in {"num_rounds": num_rounds, "num_steps": num_steps}.items():
        check_count(name, count, 0)
    check_range("tolerance", tolerance, 0)
    problem = masked_loss(loss, params, batches, operands, where, mesh)
    kept = jnp.asarray(flat_mask(mask, params, where))
    search = _Search(problem, (loss, batches, operands), kept, num_steps, where)
    while len(search.losses) <= num_rounds and search.advance():
        if search.losses[-2] - search.losses[-1] <= tolerance * abs(search.losses[-2]):
            break
    return RefittedNetwork(
        problem.unflatten(search.weights),
        search.losses[-1],
        tuple(search.losses),
        search.num_products,
    )


class _Search:
    """The current weights, loss and damping."""

    def __init__(
        self, problem: MaskedLoss, source: tuple, kept: Array, num_steps: int, where: Where
    ) -> None:
        self._problem, self._source, self._kept = problem, source, kept
        self._num_steps, self._where = num_steps, where
        self.weights = jnp.where(kept, problem.weights, 0)
        self.losses = [loss_at(problem, self.weights)]
        self.num_products = 0
        self._damping: float | None = None
        if not np.isfinite(self.losses[0]):
            raise FloatingPointError(
                f"loss must be finite at the masked params, got {self.losses[0]}"
            )

    def advance(self) -> bool:
        """Take a step that lowers the loss; return False if none does."""
        operator, gradient = self._model()
        if self._damping is None:
            self._damping = _DAMPING * self._quotient(operator, gradient)
        for _ in range(_MOST_TRIES):
            found = limits.refit(
                operator, gradient, self.weights, self._kept,
                damping=self._damping, num_steps=self._num_steps,
            )  # fmt: skip
            self.num_products += int(found.num_products)
            loss = loss_at(self._problem, found.weights)
            if loss < self.losses[-1]:
                self.weights = found.weights
                self.losses.append(loss)
                self._damping *= _EASE
                return True
            self._damping *= _STIFFEN
        return False

    def _model(self) -> tuple[Any, Float[Array, "D"]]:
        loss, batches, operands = self._source
        at = (loss, self._problem.unflatten(self.weights), batches, *operands)
        split = isinstance(loss, Split)
        make = curvature.gauss_newton_matvec if split else curvature.hessian_matvec
        settings = {"where": self._where, "mesh": self._problem.mesh}
        return make(*at, **settings), curvature.mean_gradient(*at, **settings)

    def _quotient(self, operator: Any, gradient: Array) -> float:
        """Return the curvature along the gradient over the kept weights."""
        along = jnp.where(self._kept, gradient, 0)
        peak = jnp.max(jnp.abs(along), initial=0)
        along = along / jnp.where(peak > 0, peak, 1)
        square = jnp.vdot(along, along)
        self.num_products += 1
        bent = jnp.abs(jnp.vdot(along, operator(along)))
        return float(bent / jnp.where(square > 0, square, 1))
