"""Losses that are a network and a loss of its outputs, as two functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from jaxlimit._core.batches import first_batch
from jaxlimit._core.functions import Frozen, frozen
from jaxlimit._core.losses import WEIGHTED, MeanLoss, check_arrays, check_returned, weight_scale


@runtime_checkable
class Split(Protocol):
    """A loss `loss(params, batch, *operands)` that is `output_loss(apply(...), batch)`.

    `training.make_loss` and `split_loss` make one; any object with these three methods is one.
    """

    def __call__(self, params: Any, batch: Any, *operands: Any) -> Float[Array, ""]:
        """Return the mean loss of a batch."""
        ...

    def apply(self, params: Any, batch: Any, *operands: Any) -> Any:
        """Return the network's outputs on a batch, one row an example."""
        ...

    def output_loss(self, outputs: Any, batch: Any) -> Float[Array, ""]:
        """Return the mean loss of a batch's outputs, convex in them."""
        ...


@dataclass(frozen=True)
class SplitLoss:
    """A loss made by `split_loss`; equal parts make equal losses with equal hashes.

    Attributes:
        apply: `apply(params, batch, *operands)`, the network's outputs.
        output_loss: `output_loss(outputs, batch)`, their mean loss.
    """

    apply: Callable
    output_loss: Callable

    def __call__(self, params: Any, batch: Any, *operands: Any) -> Float[Array, ""]:
        """Return the mean loss of a batch."""
        return self.output_loss(self.apply(params, batch, *operands), batch)


def split_loss(apply: Callable, output_loss: Callable) -> SplitLoss:
    """Make a loss from a network and the loss of its outputs.

    L(w; batch) = ℓ(f(w; batch); batch). It is called like any other loss; `gauss_newton_matvec` and
    `diagonal` also use f and ℓ separately.

    Args:
        apply: f, `apply(params, batch, *operands)`, outputs [batch, ...].
        output_loss: ℓ, `output_loss(outputs, batch)`, without the operands; the mean over the
            batch's examples; convex in the outputs, otherwise the Gauss-Newton matrix is not
            positive semi-definite.

    Returns:
        The `SplitLoss`.

    Raises:
        TypeError: if one of them is not callable.

    >>> import jax.numpy as jnp
    >>> square = lambda y, batch: jnp.mean((y - batch[1]) ** 2)
    >>> loss = split_loss(lambda w, batch: batch[0] * w, square)
    >>> loss(2.0, (jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0])))
    Array(2., dtype=float32)
    """
    for name, function in (("apply", apply), ("output_loss", output_loss)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    return SplitLoss(apply, output_loss)


def check_split(loss: Any) -> Split:
    """Return `loss`, or raise if it is not split.

    Raises:
        TypeError: if it has no `apply` and `output_loss`.
    """
    if not isinstance(loss, Split):
        raise TypeError(
            "loss must have `apply` and `output_loss`, as curvature.split_loss and "
            f"training.make_loss make it, got {type(loss).__name__}"
        )
    return loss


def split_parts(
    apply: Callable,
    output_loss: Callable,
    params: Any,
    batches: Any,
    operands: tuple,
    each: str | None = None,
) -> tuple[Frozen, MeanLoss, tuple]:
    """Freeze a network and the loss of its outputs; the first operand is those of the loss."""
    check_arrays(params)
    batch = first_batch(batches)
    apply = frozen(apply, params, batch, *operands)
    name = each or "output_loss"
    losses = check_returned(name, output_loss, batch, apply.out, each=each is not None)
    if losses.kind != WEIGHTED:
        return apply, losses, ((), *operands)

    def whole(params, batch, *operands):
        return losses.function(apply(params, batch, *operands), batch)

    weighted = check_returned(name, whole, batch, params, *operands)
    return apply, losses, ((weight_scale(weighted, params, batches, operands),), *operands)
