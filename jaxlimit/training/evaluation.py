"""The data loss in evaluation mode: of a batch, of every example, of a whole set."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from jaxlimit._checks import check_count
from jaxlimit.training.data import Normalization, check_dataset, normalize


@dataclasses.dataclass(frozen=True)
class DataLoss:
    """Give the mean softmax cross-entropy of a batch in evaluation mode, as a hashable callable.

    Two equal ones share a hash, so a `jit` that takes one as a static argument compiles once.
    """

    module: Any
    normalization: Normalization | None = None

    def per_example(
        self, params: PyTree, batch: tuple[Array, Array], state: PyTree = None
    ) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
        """Return each example's loss and whether its label had the largest logit."""
        images, labels = batch
        if self.normalization is not None:
            images = normalize(images, self.normalization)
        logits = self.module.apply({"params": params, **(state or {})}, images, train=False)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses, logits.argmax(-1) == labels

    def __call__(
        self, params: PyTree, batch: tuple[Array, Array], state: PyTree = None
    ) -> Float[Array, ""]:
        """Return the mean loss of `batch`, (images, labels)."""
        return self.per_example(params, batch, state)[0].mean()


def make_loss(module: Any, normalization: Normalization | None = None) -> DataLoss:
    """Make the `loss(params, batch, state)` that curvature and pruning take.

    Args:
        module: a Linen module, `__call__(images, *, train)`.
        normalization: as `fit` returned it; without it, batches must be floating.

    Returns:
        The mean data loss over the batch `(images, labels)` in evaluation mode, without the
        penalties; `state` holds the collections beside the parameters (BatchNorm statistics).
    """
    return DataLoss(module, normalization)


class Evaluation(NamedTuple):
    """Mean loss and accuracy of a set, and the loss and success of each of its examples."""

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    losses: Float[Array, " n"]
    correct: Bool[Array, " n"]


def evaluate(
    module: Any,
    params: PyTree,
    state: PyTree,
    dataset: Any,
    *,
    normalization: Normalization | None = None,
    batch_size: int = 1000,
) -> Evaluation:
    """Evaluate a network on a whole data set, each example counted once.

    Args:
        module: a Linen module, `__call__(images, *, train)`.
        params: its parameters.
        state: its other collections, `{}` if none.
        dataset: images [n, h, w, c] and labels [n].
        normalization: as `fit` returned it.
        batch_size: images at a time; a last batch that is not full is filled up and cut off.

    Returns:
        The `Evaluation`.
    """
    check_count("batch_size", batch_size)
    images, labels = check_dataset(dataset)
    losses, correct = _examples(
        params,
        state,
        jnp.asarray(images),
        jnp.asarray(labels),
        loss=make_loss(module, normalization),
        batch_size=min(batch_size, len(images)),
    )
    return Evaluation(losses.mean(), correct.mean(), losses, correct)


@functools.partial(jax.jit, static_argnames=("loss", "batch_size"))
def _examples(
    params: PyTree,
    state: PyTree,
    images: Shaped[Array, "n h w c"],
    labels: Int[Array, " n"],
    *,
    loss: DataLoss,
    batch_size: int,
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    num = len(images)
    num_batches = -(-num // batch_size)
    index = jnp.minimum(jnp.arange(num_batches * batch_size), num - 1)
    losses, correct = jax.lax.map(
        lambda rows: loss.per_example(params, (images[rows], labels[rows]), state),
        index.reshape(num_batches, batch_size),
    )
    return losses.reshape(-1)[:num], correct.reshape(-1)[:num]
