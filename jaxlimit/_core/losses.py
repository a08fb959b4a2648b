"""All kinds of losses as one: the mean over a batch's examples.

A loss returns one number, the mean over the examples of its batch; or their losses, [n]; or their
losses and weights, two arrays [n, ...]. With weights, the loss of all data is Σ w l / Σ w over all
batches.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlimit._core.batches import (
    Group,
    each,
    first_batch,
    group_batches,
    leading_size,
    mean_over,
)
from jaxlimit._core.checks import check_floating_tree, is_concrete
from jaxlimit._core.functions import Frozen, frozen
from jaxlimit._core.host import fetching
from jaxlimit._core.programs import canonical_convolutions
from jaxlimit._core.scale import wide_type

ONE, EACH, WEIGHTED = "one number", "losses", "losses and weights"


@dataclass(frozen=True)
class MeanLoss:
    """A loss whose mean over all examples is the loss of the data, made from any user's loss.

    If the user's loss returns weights, the first operand is the number of examples over the sum of
    their weights.

    Attributes:
        function: the user's, frozen.
        kind: what it returns.
    """

    function: Frozen
    kind: str

    def __call__(self, params: Any, batch: Any, *operands: Any) -> Float[Array, ""]:
        """Return the mean loss of a batch."""
        if self.kind == ONE:
            return self.function(params, batch, *operands)
        losses, weights = self.split(params, batch, *operands)
        if weights is None:
            return losses.mean()
        return operands[0] * jnp.sum(weights * losses) / leading_size(batch)

    def split(self, params: Any, batch: Any, *operands: Any) -> tuple[Array, Array | None]:
        """Return losses and weights of a batch's examples, in float32 at least."""
        if self.kind == EACH:
            return _wide(self.function(params, batch, *operands)), None
        losses, weights = self.function(params, batch, *operands[1:])
        return _wide(losses), jax.lax.stop_gradient(_wide(weights))


def _wide(array: Any) -> Array:
    array = jnp.asarray(array)
    return array.astype(wide_type(array.dtype))


def mean_loss(loss: Callable, params: Any, batches: Any, operands: tuple) -> tuple[MeanLoss, tuple]:
    """Return a user's loss as a `MeanLoss` with the operands that it takes; checks both.

    The result may be a static argument of a compiled program: it equals an earlier one only if both
    compute the same.

    Raises:
        TypeError: if the loss returns none of the three kinds, or a leaf of `params` is not real
            floating.
        ValueError: if there are no examples, `params` is not finite, or weights are negative or
            sum to 0.
    """
    if isinstance(loss, MeanLoss):
        return loss, operands
    check_arrays(params)
    checked = check_returned("loss", loss, first_batch(batches), params, *operands)
    if checked.kind != WEIGHTED:
        return checked, operands
    return checked, (weight_scale(checked, params, batches, operands), *operands)


def check_arrays(params: Any) -> None:
    """Raise unless `params` is a pytree of real arrays, floating or not."""
    check_floating_tree("params", params, [False] * len(jax.tree.leaves(params)))


def check_returned(
    name: str, function: Callable, batch: Any, first: Any, *operands: Any, each: bool = False
) -> MeanLoss:
    """Freeze `function(first, batch, *operands)` and determine what it returns.

    Args:
        name: of the function, for the error.
        function: a loss, of parameters or of outputs.
        batch: one batch.
        first: the parameters or outputs, or their shapes.
        *operands: the rest.
        each: whether it must return one loss for each example.

    Raises:
        TypeError: if it returns none of the three kinds.
    """
    traced = frozen(function, first, batch, *operands)
    leaves, count = jax.tree.leaves(traced.out), leading_size(batch)
    real = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
    kinds = {1: EACH, 2: WEIGHTED}
    # Losses of more than one axis, without weights, are more likely outputs without their loss.
    per_example = all(leaf.shape[:1] == (count,) for leaf in leaves) and (
        len(leaves) == 2 or leaves[0].shape == (count,)
    )
    if real and len(leaves) == 1 and leaves[0].shape == () and not each:
        return MeanLoss(traced, ONE)
    if real and per_example and len(leaves) in kinds and leaves[0].shape == leaves[-1].shape:
        return MeanLoss(traced, kinds[len(leaves)])
    one = "" if each else "one real floating number, or "
    raise TypeError(
        f"{name} must return {one}the losses of its {count} examples, [{count}], alone or with "
        f"as many weights, got {traced.out}"
    )


def weight_scale(loss: MeanLoss, params: Any, batches: Any, operands: tuple) -> Float[Array, ""]:
    """Return the number of examples over the sum of their weights."""
    mean, lowest = _mean_weight(loss, params, group_batches(batches), operands)
    if is_concrete(mean, lowest):
        if not float(lowest) >= 0:
            raise ValueError(f"the weights that loss returns must be at least 0, got {lowest}")
        if not float(mean) > 0:
            raise ValueError("the weights that loss returns must not sum to 0")
    return 1 / mean


@partial(jax.jit, static_argnums=0)
def _mean_weight(loss, params, groups, operands):
    def of_batch(batch):
        _, weights = loss.split(params, batch, None, *operands)
        return jnp.stack([weights.sum() / leading_size(batch), weights.min()])

    lowest = [
        jax.lax.map(fetching(lambda b: of_batch(b)[1], group.batches), group.batches).min()
        for group in groups
    ]
    return mean_over(groups, lambda batch: of_batch(batch)[0]), jnp.stack(lowest).min()


def weight_of(loss: MeanLoss, params: Any, batch: Any, *operands: Any) -> Float[Array, ""]:
    """Return the sum of a batch's weights, or its number of examples if it has no weights.

    `operands` are those of the `MeanLoss`.
    """
    if loss.kind != WEIGHTED:
        return jnp.asarray(float(leading_size(batch)))
    weights = loss.split(params, batch, *operands)[1]
    return jnp.sum(cast(Array, weights))


def losses_of_batch(loss: MeanLoss, params: Any, batch: Any, operands: tuple) -> Float[Array, "n"]:
    """Return the losses of a batch's examples, which have no weights.

    A loss that returns one number is asked for one example at a time.
    """
    if loss.kind == EACH:
        return loss.split(params, batch, *operands)[0]

    def of_example(example):
        return loss(params, jax.tree.map(lambda x: x[None], example), *operands)

    return each(of_example, batch)


def example_losses(
    loss: MeanLoss, params: Any, examples: tuple[Group, ...], operands: tuple
) -> tuple[Float[Array, "n"], Float[Array, "n"] | None]:
    """Return the loss of every example, and its weight where the loss returns weights.

    If an example has several losses, its loss is their weighted mean and its weight their sum.
    """
    found = [_of_examples(loss, params, group.batches, operands) for group in examples]
    losses, weights = zip(*found, strict=True)
    return jnp.concatenate(losses), None if weights[0] is None else jnp.concatenate(weights)


@partial(jax.jit, static_argnums=0)
def _of_examples(loss, params, stack, operands):
    def of_batch(batch):
        if loss.kind != WEIGHTED:
            return losses_of_batch(loss, params, batch, operands), None
        losses, weights = loss.split(params, batch, *operands)
        rows = losses.reshape(len(losses), -1)
        weights = weights.reshape(rows.shape)
        total = weights.sum(1)
        return (weights * rows).sum(1) / jnp.where(total > 0, total, 1), total

    losses, weights = jax.lax.map(fetching(canonical_convolutions(of_batch), stack), stack)
    return losses.ravel(), None if weights is None else weights.ravel()
