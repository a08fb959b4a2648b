"""Orders of removal that compete for the smallest mask, each from what one network's loss tells."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxlimit import curvature, limits
from jaxlimit._core import magnitudes
from jaxlimit._core.weights import Where
from jaxlimit.curvature import Split
from jaxlimit.pruning.dead import Live, find_live
from jaxlimit.pruning.greedy import gram, greedy_order
from jaxlimit.pruning.masked import MaskedLoss, loss_of_mask
from jaxlimit.pruning.saliency import order_by, order_by_relaxed, saliency

# A share of ε that dead weights may take, far below what decides between masks.
_DEAD_SHARE = 1e-3
# One diagonal by probes costs as much as so many gradients.
_NUM_PROBES = 32
_NUM_PRODUCTS = 200
# Floating operations that forming A on the support may take: minutes on a few cores.
_MOST_FLOPS = 3e13


class Support(NamedTuple):
    """The quadratic on the weights that the greedy search moves; what else is live is removed.

    Attributes:
        chosen: those weights [D].
        slope: ∇q at the removal of all live ones that are not chosen [n].
        matrix: A = diag(w) G diag(w) on them [n, n].
    """

    chosen: Bool[np.ndarray, "D"]
    slope: Float[np.ndarray, "n"]
    matrix: Float[np.ndarray, "n n"]


@dataclass(frozen=True)
class Network:
    """A trained network as the candidates see it; what is costly is computed once, when asked for.

    Attributes:
        problem: the masked loss.
        source: loss, parameters, batches and operands, as they came.
        key: of all that is random.
        epsilon: the tolerated rise.
        dense_loss: L(w).
        memory_budget: bytes of A.
        where: leaves under study.
    """

    problem: MaskedLoss
    source: tuple
    key: PRNGKeyArray
    epsilon: float
    dense_loss: float
    memory_budget: float
    where: Where

    @property
    def matrix(self) -> str:
        """Which matrix stands for the curvature: Gauss-Newton where the loss is split."""
        return "gauss-newton" if isinstance(self.source[0], Split) else "fisher"

    @cached_property
    def live(self) -> Live:
        """What is not dead; a thousandth of ε may be lost to it."""
        scale = max(abs(self.dense_loss), float(np.finfo(np.float32).tiny))
        return find_live(self.problem, self.key, _DEAD_SHARE * self.epsilon / scale)

    @cached_property
    def gradient(self) -> Float[Array, "D"]:
        """The gradient of the loss at w."""
        settings = {"where": self.where, "mesh": self.problem.mesh}
        return self._of(curvature.mean_gradient, **settings)

    @cached_property
    def diagonal(self) -> Float[Array, "D"]:
        """The diagonal of the curvature, by probes."""
        key = jax.random.fold_in(self.key, 1)
        settings = {"where": self.where, "mesh": self.problem.mesh, "matrix": self.matrix}
        return self._of(curvature.diagonal, num_probes=_NUM_PROBES, key=key, **settings)

    @cached_property
    def operator(self) -> Any:
        """The Gauss-Newton matrix of a split loss, the Hessian of another."""
        split = self.matrix == "gauss-newton"
        make = curvature.gauss_newton_matvec if split else curvature.hessian_matvec
        return self._of(make, where=self.where, mesh=self.problem.mesh)

    @cached_property
    def certificate(self) -> Any:
        """The bound below all masks within ε of the quadratic; None if the loss is not split."""
        certify = getattr(limits, "certificate", None)
        if self.matrix != "gauss-newton" or certify is None:
            return None
        at = (self.operator, self.gradient, self.problem.weights, self.epsilon)
        return certify(*at, num_products=_NUM_PRODUCTS, diagonal=self.diagonal)

    @cached_property
    def support(self) -> Support | None:
        """The quadratic on the live weights, or on the most salient of them that fit the budget."""
        live, weights = np.asarray(self.live.live), self.problem.weights
        most = int((self.memory_budget / weights.dtype.itemsize) ** 0.5)
        if most < 1 or not live.any():
            return None
        chosen = live
        if live.sum() > most:
            chosen = np.asarray(_by_saliency(self, signed=False) < most)
        values = np.asarray(weights)[chosen]
        n = values.size
        rows = self._of(
            curvature.factor_rows,
            mask=chosen,
            matrix=self.matrix,
            max_rows=max(1, int(_MOST_FLOPS / n**2)),
            where=self.where,
        )
        matrix = gram((piece * values for piece in rows), n, weights.dtype)
        slope = -np.asarray(weights * self.gradient)[chosen]
        if (outside := live & ~chosen).any():
            removed = self.operator(jnp.where(outside, weights, 0))
            slope = slope + values * np.asarray(removed)[chosen]
        return Support(chosen, slope, matrix)

    def _of(self, function: Callable, **settings: Any) -> Any:
        loss, params, batches, operands = self.source
        return function(loss, params, batches, *operands, **settings)


def _by_magnitude(network: Network) -> Int[Array, "D"]:
    return magnitudes.ranks(network.problem.weights)


def _by_live_magnitude(network: Network) -> Int[Array, "D"]:
    return magnitudes.ranks(jnp.where(network.live.live, network.problem.weights, 0))


def _by_saliency(network: Network, *, signed: bool) -> Int[Array, "D"]:
    scores = saliency(network.problem.weights, network.gradient, network.diagonal, signed=signed)
    return order_by(scores, jnp.asarray(network.live.live))


def _by_signed_saliency(network: Network) -> Int[Array, "D"]:
    return _by_saliency(network, signed=True)


def _by_absolute_saliency(network: Network) -> Int[Array, "D"]:
    return _by_saliency(network, signed=False)


def _by_relaxed(network: Network) -> Int[Array, "D"] | None:
    found = network.certificate
    if found is None:
        return None
    weights = network.problem.weights
    slope = weights * (network.operator(weights * found.relaxed) - network.gradient)
    return order_by_relaxed(found.relaxed, slope)


def _by_greedy(network: Network) -> Int[Array, "D"] | None:
    support = network.support
    if support is None:
        return None
    removal = greedy_order(support.slope, support.matrix)
    # What is not moved goes first: dead weights, then the live ones, by their absolute saliency.
    if (network.live.live & ~support.chosen).any():
        order = np.array(_by_saliency(network, signed=False))
    else:
        order = np.array(_by_live_magnitude(network))
    order[support.chosen] = removal.order
    return jnp.asarray(order)


ORDERS: dict[str, Callable[[Network], Int[Array, "D"] | None]] = {
    "magnitude": _by_magnitude,
    "live magnitude": _by_live_magnitude,
    "saliency": _by_signed_saliency,
    "absolute saliency": _by_absolute_saliency,
    "relaxed": _by_relaxed,
    "greedy": _by_greedy,
}

WHY_NONE = {
    "relaxed": "relaxed: needs a loss that is split (curvature.split_loss)",
    "greedy": "greedy: the memory budget holds no matrix, or every weight is dead",
}


def start(
    problem: MaskedLoss,
    source: tuple,
    key: PRNGKeyArray,
    *,
    epsilon: float,
    memory_budget: float,
    where: Where,
) -> Network:
    """Evaluate the dense loss, and stand ready for the candidates."""
    dense = loss_of_mask(problem, jnp.ones(problem.weights.shape, bool))
    return Network(problem, source, key, epsilon, dense, memory_budget, where)
