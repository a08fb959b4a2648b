"""Orders of removal that compete for the smallest mask of one network."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxlimit import curvature, limits
from jaxlimit._core import magnitudes
from jaxlimit._core.batches import count_examples, first_batch
from jaxlimit._core.operator import Operator
from jaxlimit._core.weights import Where
from jaxlimit.curvature import Split
from jaxlimit.pruning.dead import Live, find_live
from jaxlimit.pruning.greedy import gram, greedy_order
from jaxlimit.pruning.masked import MaskedLoss, loss_of_mask
from jaxlimit.pruning.saliency import order_by, order_by_relaxed, saliency
from jaxlimit.pruning.stepwise import MOST_ROUNDS, stepwise_order

# The share of ε that dead weights may cost, far below what decides between masks.
_DEAD_SHARE = 1e-3
_NUM_PROBES = 32
# Products with the matrix of the live weights; and with the whole operator, for the proof.
_NUM_INNER_PRODUCTS = 400
_NUM_PROVING_PRODUCTS = 16
# The greedy search profits from so many weights for each that the best mask so far keeps.
_SPARE = 3


class Budget(NamedTuple):
    """The limits on the cost of the quadratic model.

    Attributes:
        memory: bytes of the matrix of the greedy search, or of its factor, on the host.
        flops: floating operations for forming it: some minutes on a few cores. Above that it is
            formed on fewer weights, and then from fewer examples.
        num_examples: the most examples for the curvature, evenly spaced.
        num_products: the most Gauss-Newton products for the certificate.
    """

    memory: float = 8 * 2**30
    flops: float = 3e13
    num_examples: int = 10_000
    num_products: int = 200


class Support(NamedTuple):
    """The quadratic on the weights that the greedy search may keep; other live ones are removed.

    Attributes:
        chosen: those weights [D].
        slope: ∇q at the removal of all live ones that are not chosen [n].
        matrix: A = diag(w) G diag(w) on them [n, n]; None where the factor is the smaller.
        factor: B [m, n] with A = BᵀB, in its place.
        is_all: whether all live ones are chosen.
    """

    chosen: Bool[np.ndarray, "D"]
    slope: Float[np.ndarray, "n"]
    matrix: Float[np.ndarray, "n n"] | None
    factor: Float[np.ndarray, "m n"] | None
    is_all: bool

    def diagonal(self) -> Float[np.ndarray, "n"]:
        """Return the diagonal of A."""
        if self.factor is not None:
            return np.einsum("mn,mn->n", self.factor, self.factor)
        return np.diagonal(np.asarray(self.matrix))

    def operator(self) -> Operator:
        """Return A as an operator."""
        if self.factor is not None:
            return Operator(Partial(_by_factor, jnp.asarray(self.factor)), dim=self.slope.size)
        return Operator(Partial(jnp.matmul, jnp.asarray(self.matrix)), dim=self.slope.size)


def _by_factor(factor: Float[Array, "m n"], vector: Float[Array, "n"]) -> Float[Array, "n"]:
    return (factor @ vector) @ factor


@dataclass
class Network:
    """A trained network for the candidates; what is costly is computed once, when first used.

    Attributes:
        problem: the masked loss.
        source: loss, parameters, batches and operands, as they came.
        key: random key.
        epsilon: the tolerated rise.
        dense_loss: L(w).
        budget: limits of the quadratic model.
        where: leaves under study.
        best_kept: weights kept by the smallest mask so far; D before there is one.
    """

    problem: MaskedLoss
    source: tuple
    key: PRNGKeyArray
    epsilon: float
    dense_loss: float
    budget: Budget
    where: Where
    best_kept: int

    @property
    def matrix(self) -> str:
        """The matrix that stands for the curvature: Gauss-Newton where the loss is split."""
        return "gauss-newton" if isinstance(self.source[0], Split) else "fisher"

    @cached_property
    def live(self) -> Live:
        """The live weights; removing the dead ones may cost a thousandth of ε."""
        scale = max(abs(self.dense_loss), float(np.finfo(np.float32).tiny))
        return find_live(self.problem, self.key, _DEAD_SHARE * self.epsilon / scale)

    @property
    def found_live(self) -> Bool[Array, "D"] | None:
        """The mask of live weights, if it has been computed."""
        return self.live.live if "live" in vars(self) else None

    @cached_property
    def gradient(self) -> Float[Array, "D"]:
        """The gradient of the loss at w, over all examples."""
        loss, params, batches, operands = self.source
        return curvature.mean_gradient(loss, params, batches, *operands, **self._settings)

    @cached_property
    def diagonal(self) -> Float[Array, "D"]:
        """The diagonal of the curvature: from A if it is there on all live weights, or by probes.

        The one from A is 0 at dead weights.
        """
        support = self.support if self._takes_all else None
        if support is not None:
            weights = np.asarray(self.problem.weights)
            found = np.zeros_like(weights)
            found[support.chosen] = support.diagonal() / weights[support.chosen] ** 2
            return jnp.asarray(found)
        settings = self._settings | {"matrix": self.matrix, "num_probes": _NUM_PROBES}
        return self._curved(curvature.diagonal, key=jax.random.fold_in(self.key, 1), **settings)

    @cached_property
    def operator(self) -> Any:
        """The Gauss-Newton matrix of a split loss, the Hessian of another."""
        split = self.matrix == "gauss-newton"
        make = curvature.gauss_newton_matvec if split else curvature.hessian_matvec
        return self._curved(make, **self._settings)

    @cached_property
    def certificate(self) -> Any:
        """The bound that no mask within ε of the quadratic beats; None if the loss is not split.

        Where the greedy search has the matrix of all live weights, z̄ is found with it, and a few
        products of the whole operator prove the bound.
        """
        if self.matrix != "gauss-newton":
            return None
        at = (self.operator, self.gradient, self.problem.weights, self.epsilon)
        if self.support is None or not self.support.is_all:
            products = self.budget.num_products
            return limits.certificate(*at, num_products=products, diagonal=self.diagonal)
        weights = self.problem.weights
        inner = limits.certificate(
            self.support.operator(),
            -jnp.asarray(self.support.slope, weights.dtype),
            jnp.ones(self.support.slope.size, weights.dtype),
            self.epsilon,
            num_products=_NUM_INNER_PRODUCTS,
            diagonal=jnp.asarray(self.support.diagonal()),
        )
        relaxed = np.ones(weights.shape, weights.dtype)
        relaxed[self.support.chosen] = inner.relaxed
        products = min(_NUM_PROVING_PRODUCTS, self.budget.num_products)
        return limits.certificate(*at, num_products=products, start=relaxed)

    @cached_property
    def support(self) -> Support | None:
        """The quadratic on the live weights, or on the most salient of them that fit the budget."""
        live, weights = np.asarray(self.live.live), self.problem.weights
        fits, affordable = self._sizes
        most = (
            live.size
            if self._fits_by_factor
            else min(fits, max(affordable, _SPARE * self.best_kept))
        )
        if most < 1 or not live.any():
            return None
        chosen = live
        if live.sum() > most:
            chosen = np.asarray(by_saliency(self, signed=False) < most)
        values = np.asarray(weights)[chosen]
        rows = self.rows_at(weights, chosen)
        pieces, matrix, factor = (piece * values for piece in rows), None, None
        if self._fits_by_factor:
            factor = np.concatenate(list(pieces))
        else:
            matrix = gram(pieces, values.size, weights.dtype)
        slope = -np.asarray(weights * self.gradient)[chosen]
        outside = live & ~chosen
        if outside.any():
            removed = self.operator(jnp.where(outside, weights, 0))
            slope = slope + values * np.asarray(removed)[chosen]
        return Support(chosen, slope, matrix, factor, not outside.any())

    def rows_at(
        self, weights: Float[Array, "D"], mask: Bool[np.ndarray, "D"], share: float = 1.0
    ) -> Any:
        """Return pieces of the rows of G's factor at other weights, on the entries of a mask.

        From fewer examples where forming A would exceed its share of the flops of the budget.
        """
        loss, _, _, operands = self.source
        return curvature.factor_rows(
            loss,
            self.problem.unflatten(weights),
            self._some[0],
            *operands,
            mask=mask,
            matrix=self.matrix,
            max_rows=max(1, int(share * self.budget.flops / int(mask.sum()) ** 2)),
            where=self.where,
        )

    @property
    def _settings(self) -> dict[str, Any]:
        return {"where": self.where, "mesh": self.problem.mesh}

    @property
    def _sizes(self) -> tuple[int, int]:
        """Return how many weights the memory allows for A, and how many the flops for all rows."""
        itemsize = self.problem.weights.dtype.itemsize
        fits = int((self.budget.memory / itemsize) ** 0.5)
        return fits, int((self.budget.flops / self._num_rows()) ** 0.5)

    @cached_property
    def _fits_by_factor(self) -> bool:
        """Whether the factor of A on all live weights fits, but not A itself."""
        num, fits, rows = int(self.live.live.sum()), self._sizes[0], self._num_rows()
        return num > fits and rows * num <= fits**2 and rows * num**2 <= self.budget.flops

    @property
    def _takes_all(self) -> bool:
        return 0 < int(self.live.live.sum()) <= min(self._sizes) or self._fits_by_factor

    def _num_rows(self) -> int:
        """Count the rows of the factor: an output an example."""
        loss, params, _, operands = self.source
        some, _ = self._some
        if self.matrix == "fisher":
            return count_examples(some)
        one = jax.tree.map(lambda leaf: leaf[:1], first_batch(some))
        outputs = jax.eval_shape(loss.apply, params, one, *operands)
        return count_examples(some) * sum(leaf.size for leaf in jax.tree.leaves(outputs))

    @cached_property
    def _some(self) -> tuple[Any, int]:
        """The examples for the curvature, and their spacing among all."""
        batches = self.source[2]
        stride = -(-count_examples(batches) // max(self.budget.num_examples, 1))
        if isinstance(batches, list):
            return [jax.tree.map(lambda x: x[::stride], batch) for batch in batches], stride
        return jax.tree.map(lambda x: x[:, ::stride], batches), stride

    def _curved(self, function: Callable, **settings: Any) -> Any:
        loss, params, _, operands = self.source
        return function(loss, params, self._some[0], *operands, **settings)


def _by_magnitude(network: Network) -> Int[Array, "D"]:
    return magnitudes.ranks(network.problem.weights)


def _by_live_magnitude(network: Network) -> Int[Array, "D"]:
    return magnitudes.ranks(jnp.where(network.live.live, network.problem.weights, 0))


def by_saliency(network: Network, *, signed: bool) -> Int[Array, "D"]:
    """Order the live weights by their saliency, followed by the dead ones."""
    scores = saliency(network.problem.weights, network.gradient, network.diagonal, signed=signed)
    return order_by(scores, jnp.asarray(network.live.live))


def _by_signed_saliency(network: Network) -> Int[Array, "D"]:
    return by_saliency(network, signed=True)


def _by_absolute_saliency(network: Network) -> Int[Array, "D"]:
    return by_saliency(network, signed=False)


def _by_relaxed(network: Network) -> Int[Array, "D"] | None:
    found = network.certificate
    if found is None:
        return None
    weights = network.problem.weights
    slope = weights * (network.operator(weights * found.relaxed) - network.gradient)
    return order_by_relaxed(found.relaxed, slope)


def _by_greedy(network: Network, cautious: bool = False) -> Int[Array, "D"] | None:
    support = network.support
    if support is None:
        return None
    # Far from a minimum the gains that the gradient promises do not add up, so they count as 0.
    slope = np.maximum(support.slope, 0) if cautious else support.slope
    removal = greedy_order(slope, support.matrix, factor=support.factor)
    # What is not in the search is removed first: dead weights, then live ones by absolute saliency.
    if support.is_all:
        order = np.array(_by_live_magnitude(network))
    else:
        order = np.array(by_saliency(network, signed=False))
    order[support.chosen] = removal.order
    return jnp.asarray(order)


def _by_stepwise(network: Network) -> Int[Array, "D"] | None:
    support, limit = network.support, network.dense_loss + network.epsilon
    if support is None or support.matrix is None:
        return None
    if loss_of_mask(network.problem, jnp.asarray(support.chosen)) > limit:
        return None
    by_live = support.is_all
    order = _by_live_magnitude(network) if by_live else by_saliency(network, signed=False)
    # All its quadratics together may cost as much as the one at w.
    rows_at = partial(network.rows_at, share=1 / MOST_ROUNDS)
    found = stepwise_order(network.problem, order, support.chosen, rows_at, limit=limit)
    return jnp.asarray(found.order)


ORDERS: dict[str, Callable[[Network], Int[Array, "D"] | None]] = {
    "magnitude": _by_magnitude,
    "live magnitude": _by_live_magnitude,
    "saliency": _by_signed_saliency,
    "absolute saliency": _by_absolute_saliency,
    "relaxed": _by_relaxed,
    "greedy": _by_greedy,
    "cautious greedy": partial(_by_greedy, cautious=True),
    "stepwise greedy": _by_stepwise,
}

WHY_NONE = {
    "relaxed": "relaxed: it needs the Gauss-Newton matrix, so a loss that is split into the "
    "network and the loss of its outputs; make it by curvature.split_loss(apply, output_loss)",
    "cautious greedy": "cautious greedy: not tried, for the same reason as greedy",
    "greedy": "greedy: not tried, the memory budget holds no matrix, or every weight is dead",
}


def start(
    problem: MaskedLoss,
    source: tuple,
    key: PRNGKeyArray,
    *,
    epsilon: float,
    budget: Budget,
    where: Where,
) -> Network:
    """Evaluate the dense loss, and prepare the network for the candidates."""
    dense = loss_of_mask(problem, jnp.ones(problem.weights.shape, bool))
    return Network(problem, source, key, epsilon, dense, budget, where, int(problem.weights.size))
