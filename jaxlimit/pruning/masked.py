"""The true loss of masked networks, over all examples: the one judge of every mask.

An *order* of removal is given by places, an array [D]: the mask that keeps k weights keeps those
whose place is below k. So the weight at place 0 is removed last, and `order < k` is the mask.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import sharding, shares
from jaxlimit._core.batches import leading_size
from jaxlimit._core.losses import mean_loss
from jaxlimit._core.memory import catching_refusals
from jaxlimit._core.programs import precise_products
from jaxlimit._core.weights import Where, flatten_weights

_AT_ONCE = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedLoss:
    """The mean loss over all examples, as a function of the weights under study.

    Attributes:
        loss: `loss(params, batch, *operands)`.
        weights: w under study [D].
        unflatten: from [D] to a pytree like the parameters.
        examples: all examples, grouped or distributed over a mesh.
        operands: passed on to `loss`.
        mesh: the devices that share the examples, if any.
    """

    loss: Callable = field(metadata={"static": True})
    weights: Float[Array, "D"]
    unflatten: Partial
    examples: shares.Examples
    operands: tuple
    mesh: Mesh | None = field(metadata={"static": True})

    def at(self, weights: Float[Array, "D"]) -> Float[Array, ""]:
        """Return the mean loss at `weights`."""

        def of_batch(batch, unflatten, weights, operands):
            return self.loss(unflatten(weights), batch, *operands)

        return shares.mean(self.examples, of_batch, self.unflatten, weights, self.operands)


def masked_loss(
    loss: Callable, params: Any, batches: Any, operands: tuple, where: Where, mesh: Mesh | None
) -> MaskedLoss:
    """Check a loss and its data, and prepare them for many evaluations."""
    loss, operands = mean_loss(loss, params, batches, operands)
    weights, unflatten = flatten_weights(params, where)
    examples = shares.examples_of(batches, mesh)
    weights, unflatten, operands = sharding.replicate((weights, unflatten, operands), mesh)
    return MaskedLoss(loss, weights, unflatten, examples, operands, mesh)


def some_examples(problem: MaskedLoss, stride: int) -> MaskedLoss | None:
    """Keep every `stride`-th batch; None if there are too few, or they are on a mesh."""
    groups = problem.examples
    if isinstance(groups, shares.Shares):
        return None
    if sum(leading_size(group.batches) for group in groups) < 2 * stride:
        return None
    fewer = tuple(
        g._replace(batches=jax.tree.map(lambda x: x[::stride], g.batches)) for g in groups
    )
    # Each group keeps its share of all examples, which its remaining batches now stand for.
    return dataclasses.replace(problem, examples=fewer)


@jax.jit
def _along(problem: MaskedLoss, order: Int[Array, "D"], counts: Int[Array, "r"]) -> Array:
    return jax.lax.map(lambda k: problem.at(jnp.where(order < k, problem.weights, 0)), counts)


@jax.jit
def _at_mask(problem: MaskedLoss, mask: Bool[Array, "D"]) -> Array:
    return problem.at(jnp.where(mask, problem.weights, 0))


@jax.jit
def _at_weights(problem: MaskedLoss, weights: Float[Array, "D"]) -> Array:
    return problem.at(weights)


@jax.jit
def _derivatives(problem: MaskedLoss, mask: Bool[Array, "D"], vector: Float[Array, "D"]) -> tuple:
    masked = jnp.where(mask, problem.weights, 0)
    with precise_products():
        return jax.jvp(jax.grad(problem.at), (masked,), (vector,))


def losses_along(problem: MaskedLoss, order: Int[Array, "D"], counts: Any) -> np.ndarray:
    """Evaluate the loss of the masks that keep `counts` weights of an order, in one program."""
    with catching_refusals("while masks were evaluated: make batches smaller"):
        losses = _along(problem, order, jnp.asarray(counts, jnp.int32))
        return np.asarray(sharding.local(losses, problem.mesh))


def loss_of_mask(problem: MaskedLoss, mask: Bool[Array, "D"]) -> float:
    """Evaluate the loss of one flat mask, True = kept."""
    with catching_refusals("while a mask was evaluated: make batches smaller"):
        return float(sharding.local(_at_mask(problem, mask), problem.mesh))


def loss_at(problem: MaskedLoss, weights: Float[Array, "D"]) -> float:
    """Evaluate the loss of other values of the weights under study."""
    with catching_refusals("while weights were evaluated: make batches smaller"):
        return float(sharding.local(_at_weights(problem, weights), problem.mesh))


def derivatives_at_mask(
    problem: MaskedLoss, mask: Bool[Array, "D"], vector: Float[Array, "D"]
) -> tuple[Float[Array, "D"], Float[Array, "D"]]:
    """Return the gradient at the masked weights, and the product of the Hessian there."""
    return sharding.local(_derivatives(problem, mask, vector), problem.mesh)


class Smallest(NamedTuple):
    """The smallest mask of an order that passes, its loss, and how many masks were evaluated."""

    num_kept: int
    loss: float
    num_evaluations: int


def smallest_along(
    problem: MaskedLoss,
    order: Int[Array, "D"],
    accept: Callable[[np.ndarray], np.ndarray],
    *,
    guess: int | None = None,
    window: int = 16,
) -> Smallest:
    """Find the smallest mask of an order whose loss is accepted.

    Halves the count until two masks in a row fail, and bisects between the last that passed and the
    next smaller one that failed. Since a loss is not monotone in the count, it then evaluates the
    `window` counts below, and again below each of them that passes. The mask of all weights counts
    as accepted. With a guess, growing steps from it replace the halving. Costs about 2 log₂ D
    evaluations and the window; with a good guess a third of that.
    """
    search = _Search(problem, order, accept)
    low, high = search.halve() if guess is None else search.spread(guess)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if search.passes(middle) else (middle, high)
    high = search.look_below(high, window)
    return Smallest(high, search.losses[high], len(search.losses))


class _Search:
    """The masks of one order that were evaluated, by their counts."""

    def __init__(self, problem: MaskedLoss, order: Array, accept: Callable) -> None:
        self.problem, self.order, self.accept = problem, order, accept
        self.dim = int(problem.weights.size)
        self.losses: dict[int, float] = {}

    def passes(self, *counts: int) -> Any:
        """Evaluate several counts at once, and return which pass."""
        found = losses_along(self.problem, self.order, counts)
        self.losses.update(zip(counts, found.tolist(), strict=True))
        passed = np.asarray(self.accept(found)) | (np.asarray(counts) == self.dim)
        return passed if len(counts) > 1 else bool(passed[0])

    def halve(self) -> tuple[int, int]:
        """Return a count that failed, or -1, and a larger one that passed."""
        high, failed, count = self.dim, -1, self.dim // 2
        self.passes(high)
        while count < high:
            if self.passes(count):
                high, failed = count, -1
            elif failed >= 0:
                break
            else:
                failed = count
            if count == 0:
                break
            count //= 2
        return failed, high

    def spread(self, guess: int) -> tuple[int, int]:
        """Return such a pair, starting from a guess."""
        count, step = min(max(guess, 0), self.dim), max(guess // 64, 1)
        low, high = -1, self.dim
        if self.passes(count):
            high = count
            while high > 0 and low < 0:
                count, step = max(high - step, 0), 2 * step
                low, high = (low, count) if self.passes(count) else (count, high)
            return low, high
        low = count
        while high == self.dim and low < self.dim - 1:
            count, step = min(low + step, self.dim - 1), 2 * step
            low, high = (low, count) if self.passes(count) else (count, high)
        if high == self.dim:
            self.passes(high)
        return low, high

    def look_below(self, high: int, window: int) -> int:
        """Evaluate the counts below the smallest that passed, and below each that passes there."""
        edge = high
        while edge > 0 and high - edge < window:
            counts = np.maximum(edge - 1 - np.arange(_AT_ONCE), 0).tolist()
            passed = np.flatnonzero(self.passes(*counts))
            edge = counts[-1]
            high = min([high, *(counts[i] for i in passed)])
        return high
