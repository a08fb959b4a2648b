"""Is a loss the mean of a loss of each example, and what are those losses?

ε and the Hessian are defined for a mean over independent examples. A sum, a weighted mean, or a
loss that compares the examples of a batch silently gives other numbers for other batches. The
losses of single examples reveal it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from jaxlimit._core import scale, sharding, shares
from jaxlimit._core.batches import first_batch, leading_size
from jaxlimit._core.checks import is_concrete
from jaxlimit._core.host import batch_like, fetching
from jaxlimit._core.losses import ONE, MeanLoss
from jaxlimit._core.programs import canonical_convolutions

_LEAST_TOLERANCE = 1e-3  # relative to the losses: programs for other shapes round differently


class ExampleLosses(NamedTuple):
    """The losses of all batches and of their single examples.

    Attributes:
        batches: loss of each batch.
        sizes: number of examples of each batch.
        singles: loss of each single example, None where the loss takes no batch of one.
        means: mean of `singles` over each batch, or None.
        weights: weight of each example over their mean, None where all count alike.
    """

    batches: Float[Array, "b"]
    sizes: np.ndarray
    singles: Float[Array, "n"] | None
    means: Float[Array, "b"] | None
    weights: Float[Array, "n"] | None = None


def example_losses(
    loss: MeanLoss, params: Any, batches: Any, operands: tuple, mesh: Mesh | None = None
) -> ExampleLosses:
    """Evaluate a loss on all batches and on all single examples; costs two evaluations.

    Where a loss takes no batch of one but returns the losses of its examples, those are used.
    """
    examples = shares.examples_of(batches, mesh)
    at = sharding.replicate((params, operands), mesh)
    single = has_single_examples(loss, params, first_batch(batches), operands)
    rows = sharding.local(_losses(loss, single, examples, *at), mesh)
    wholes, singles, weights = zip(*rows, strict=True)
    wide = lambda x: x.astype(scale.wide_type(x.dtype))  # noqa: E731
    sizes = np.concatenate(
        [np.full(len(w), size) for w, size in zip(wholes, _sizes(examples), strict=True)]
    )
    batches = wide(jnp.concatenate(wholes))
    if singles[0] is None:
        return ExampleLosses(batches, sizes, None, None)
    joined = lambda rows: jnp.concatenate([wide(x).ravel() for x in rows])  # noqa: E731
    means = jnp.concatenate([wide(x).mean(1) for x in singles])
    weights = None if weights[0] is None else joined(weights)
    return ExampleLosses(batches, sizes, joined(singles), means, weights)


def has_single_examples(loss: MeanLoss, params: Any, batch: Any, operands: tuple) -> bool:
    """Whether the loss takes a batch of one, and a stack of such batches under `vmap`."""
    try:
        jax.eval_shape(jax.vmap(partial(_of_example, loss, params, operands)), batch)
    except Exception:  # whatever the loss raises
        return False
    return True


def _of_example(loss, params, operands, example):
    return loss(params, jax.tree.map(lambda x: x[None], example), *operands)


@partial(jax.jit, static_argnums=(0, 1))
def _losses(loss, single, examples, params, operands):
    def of_batch(batch):
        whole = loss(params, batch, *operands)
        returned, weights = (
            (None, None) if loss.kind == ONE else _returned(loss, params, batch, operands)
        )
        if single:
            returned = jax.vmap(partial(_of_example, loss, params, operands))(batch)
        return whole, returned, weights

    def of_stack(stack):
        return jax.lax.map(fetching(canonical_convolutions(of_batch), stack), stack)

    if isinstance(examples, shares.Shares):  # each device's own, then those that all have
        own = [jax.tree.map(_join_devices, jax.vmap(of_stack)(stack)) for stack in examples.own]
        return [*own, *map(of_stack, examples.common)]
    return [of_stack(group.batches) for group in examples]


def _returned(loss, params, batch, operands):
    """Return the losses of the examples as the loss returns them, and their weights if any."""
    losses, weights = loss.split(params, batch, *operands)
    rows = losses.reshape(len(losses), -1)
    if weights is None:
        return rows.mean(1), None
    weights = operands[0] * weights.reshape(rows.shape)
    return (weights * rows).sum(1), weights.sum(1)


def _join_devices(losses):
    return losses.reshape(-1, *losses.shape[2:])


def _sizes(examples):
    """Return the number of examples in a batch of each stack."""
    if isinstance(examples, shares.Shares):
        stacks = [jax.tree.map(lambda x: x[0], stack) for stack in examples.own]
        stacks += examples.common
    else:
        stacks = [group.batches for group in examples]
    return [leading_size(batch_like(stack)) for stack in stacks]


def why_no_mean(
    losses: ExampleLosses, loss: MeanLoss, params: Any, batch: Any, operands: tuple
) -> str | None:
    """Say why a loss is no mean over independent examples; None if it is one, or if unknown.

    Args:
        losses: from `example_losses`.
        loss: the loss itself, which is evaluated on the halves of `batch`.
        params: its parameters.
        batch: one batch.
        operands: passed on to `loss`.

    Raises:
        ValueError: if it is a sum.
    """
    if not is_concrete(losses.batches):
        return None
    wholes = np.asarray(losses.batches, np.float64)
    if not np.isfinite(wholes).all():
        return None
    dtypes = [jnp.result_type(x) for x in jax.tree.leaves(params)]
    dtypes.append(jax.eval_shape(loss, params, batch, *operands).dtype)
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.floating)]
    tolerance = max(_LEAST_TOLERANCE, *(4 * float(jnp.finfo(dtype).eps) for dtype in floating))
    if losses.singles is None or losses.means is None:
        return _by_halves(loss, params, batch, operands, tolerance)
    means = np.asarray(losses.means, np.float64)
    if not np.isfinite(means).all():
        return (
            "the loss is no mean over independent examples: of some single ones it is not finite, "
            "of their batch it is (rows of padding, weights of 0, or statistics of the batch)"
        )
    size = np.mean(np.abs(np.asarray(losses.singles, np.float64)))
    if (np.abs(wholes - means) <= tolerance * size).all():
        return None
    many = losses.sizes > 1
    if (np.abs(wholes - means * losses.sizes) <= tolerance * size * losses.sizes)[many].all():
        raise ValueError(
            "loss must be the mean over a batch's examples, got their sum, which counts a batch of "
            "n examples n times: divide it by the number of examples"
        )
    worst = np.argmax(np.abs(wholes - means))
    return (
        f"the loss is no mean over independent examples: a batch of {losses.sizes[worst]} has loss "
        f"{wholes[worst]:.3g}, its single examples {means[worst]:.3g} on average (statistics of "
        "the batch, a comparison within it, or weights, padding or tokens in its denominator: of "
        "the latter return losses and weights, a pair of arrays)"
    )


def _by_halves(loss, params, batch, operands, tolerance):
    """Judge a loss by a batch and its halves alone."""
    size = leading_size(batch)
    cuts = (slice(None), slice(0, size // 2), slice(size // 2, None))
    try:
        pieces = [jax.tree.map(lambda x, c=cut: x[c], batch) for cut in cuts]
        whole, first, second = (float(jax.jit(loss)(params, piece, *operands)) for piece in pieces)
    except Exception:  # whatever the loss raises
        return "the loss takes only batches of one size, and nothing tells it from a mean"
    mean = first * (size // 2) / size + second * (1 - size // 2 / size)
    if abs(whole - mean) <= tolerance * max(abs(first), abs(second)):
        return None
    if abs(whole - first - second) <= tolerance * max(abs(whole), abs(first)):
        raise ValueError(
            "loss must be the mean over a batch's examples, got their sum, which counts a batch of "
            "n examples n times: divide it by the number of examples"
        )
    return (
        f"the loss is no mean over independent examples: a batch of {size} has loss {whole:.3g}, "
        f"its halves {mean:.3g} on average"
    )
