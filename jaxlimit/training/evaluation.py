"""The data loss in evaluation mode, of a batch and of a whole set, and distances from a minimum."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from jaxlimit._core.checks import check_count, check_range
from jaxlimit._core.programs import canonical_convolutions
from jaxlimit._core.scale import wide_type
from jaxlimit._core.weights import Where, is_weight
from jaxlimit.training.data import Normalization, check_dataset, normalize
from jaxlimit.training.network import check_labels, forward, score
from jaxlimit.training.optimizer import penalised, soft_threshold, spread, tree_norm


@dataclasses.dataclass(frozen=True)
class DataLoss:
    """The mean softmax cross-entropy of a batch in evaluation mode.

    Equal modules and normalisations make equal losses with equal hashes, so a `jit` with one as a
    static argument compiles once.
    """

    module: Any
    normalization: Normalization | None = None

    def __call__(
        self, params: PyTree, batch: tuple[Array, Array], state: PyTree = None
    ) -> Float[Array, ""]:
        """Return the mean loss of `batch`, (images, labels)."""
        return self.per_example(params, batch, state).mean()

    def per_example(
        self, params: PyTree, batch: tuple[Array, Array], state: PyTree = None
    ) -> Float[Array, " n"]:
        """Return the loss of each example of `batch`."""
        return score(self.module, params, state or {}, batch, self.normalization, train=False)[0]

    def logits(
        self, params: PyTree, batch: tuple[Array, Array], state: PyTree = None
    ) -> Float[Array, "n classes"]:
        """Return the logits of `batch`, the outputs that a Gauss-Newton matrix uses."""
        images = batch[0]
        if self.normalization is not None:
            images = normalize(images, self.normalization)
        return forward(self.module, params, state or {}, images, train=False)[0]

    # `curvature` needs these two for a Gauss-Newton matrix.
    apply = logits

    def output_loss(self, outputs: Float[Array, "n classes"], batch: Any) -> Float[Array, ""]:
        """Return the mean cross-entropy of logits with the labels of `batch`."""
        return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1]).mean()

    def accuracy(
        self, params: PyTree, batch: tuple[Array, Array], state: PyTree = None
    ) -> Float[Array, ""]:
        """Return the share of `batch` whose label has the largest logit."""
        scored = score(self.module, params, state or {}, batch, self.normalization, train=False)
        return scored[1].mean()


def make_loss(module: Any, normalization: Normalization | None = None) -> DataLoss:
    """Make the `loss(params, batch, state)` that curvature and pruning take.

    Args:
        module: a network as `fit` takes it.
        normalization: that of the result of `fit`; None for images that are normalised already.

    Returns:
        The mean data loss of the batch `(images, labels)` in evaluation mode, without the
        penalties; `state` holds the other variables of the network (BatchNorm statistics), none by
        default.

    >>> import flax.linen as nn
    >>> make_loss(nn.Dense(10)) == make_loss(nn.Dense(10))
    True
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
        module: a network as `fit` takes it.
        params: its parameters.
        state: its other variables, `{}` if none.
        dataset: images [n, h, w, c] and labels [n].
        normalization: that of the result of `fit`; None for images that are normalised already.
        batch_size: images at a time, which bounds the memory; need not divide n.

    Returns:
        The `Evaluation`, with the loss of each example.

    Raises:
        TypeError: if `batch_size` is no integer.
        ValueError: for images or labels the network cannot take, or a `batch_size` below 1.

    >>> import numpy as np
    >>> def forward(params, state, images, *, train, key):
    ...     return images.reshape(len(images), -1) @ params, state
    >>> images = np.array([2.0, -2.0, 1.0], np.float32).reshape(3, 1, 1, 1)
    >>> result = evaluate(forward, np.array([[0.0, 1.0]]), {}, (images, np.array([1, 0, 0])))
    >>> result.correct.tolist(), round(result.accuracy.item(), 3)
    ([True, True, False], 0.667)
    """
    check_count("batch_size", batch_size)
    images, labels = check_dataset(dataset)
    check_labels(module, params, state, images, labels)
    losses, correct = _examples(
        params,
        state,
        jnp.asarray(images),
        jnp.asarray(labels),
        normalization,
        module=module,
        batch_size=min(batch_size, len(images)),
    )
    return Evaluation(losses.mean(), correct.mean(), losses, correct)


@functools.partial(jax.jit, static_argnames=("module", "batch_size"))
def _examples(
    params: PyTree,
    state: PyTree,
    images: Shaped[Array, "n h w c"],
    labels: Int[Array, " n"],
    normalization: Normalization | None,
    *,
    module: Any,
    batch_size: int,
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    def one_batch(rows: Int[Array, " batch"]) -> tuple[Array, Array]:
        batch = images[rows], labels[rows]
        return score(module, params, state, batch, normalization, train=False)[:2]

    results = jax.lax.map(canonical_convolutions(one_batch), _batch_rows(len(images), batch_size))
    losses, correct = (result.reshape(-1)[: len(images)] for result in results)
    return losses, correct


def _batch_rows(num: int, batch_size: int) -> Int[Array, "batches batch"]:
    """Return the rows of every batch; the last batch is padded with the last row."""
    num_batches = -(-num // batch_size)
    rows = jnp.minimum(jnp.arange(num_batches * batch_size), num - 1)
    return rows.reshape(num_batches, batch_size)


class MinimumDistance(NamedTuple):
    """How far a network is from a minimum of its regularised loss.

    Attributes:
        norm: ‖r‖ of the proximal-gradient residual r; 0 exactly at a stationary point.
        relative: ‖r‖/‖w‖ over all parameters.
        gradient_norm: ‖∇L(w) + l2·w‖, the norm of r without l1.
    """

    norm: Float[Array, ""]
    relative: Float[Array, ""]
    gradient_norm: Float[Array, ""]


def distance_from_minimum(
    module: Any,
    params: PyTree,
    state: PyTree,
    dataset: Any,
    *,
    l1: Any,
    l2: float = 0.0,
    where: Where = is_weight,
    normalization: Normalization | None = None,
    batch_size: int = 1000,
) -> MinimumDistance:
    """Measure how far from a minimum of L + l1·‖w‖₁ + ½·l2·‖w‖² a network is.

    The residual is that of one proximal gradient step of unit length over the whole set,

        r = w - S(w - ∇L(w) - l2·w, l1),    S(x, t) = sign(x)·max(|x| - t, 0),

    with L the mean data loss in evaluation mode; leaves without a penalty have l1 = l2 = 0. For a
    weight far from 0, r is ∇L + l1·sign(w) + l2·w; for one at 0 it is the excess of |∇L| over l1;
    for a small weight that the penalty pulls to 0 it is the weight itself. Costs one gradient over
    the whole set.

    Args:
        module: a network as `fit` takes it.
        params: its parameters.
        state: its other variables, `{}` if none.
        dataset: images [n, h, w, c] and labels [n], the training set.
        l1: strength of the l1 penalty; for a reweighted one, `l1_weights` of the weights when the
            last epoch began, or now.
        l2: strength of the l2 penalty.
        where: which leaves the penalties act on; see `fit`.
        normalization: that of the result of `fit`.
        batch_size: images at a time, which bounds the memory; need not divide n.

    Returns:
        The `MinimumDistance`.

    Raises:
        TypeError: if `batch_size` is no integer.
        ValueError: for images or labels the network cannot take, a negative `l1` or `l2`, or a
            `batch_size` below 1.

    >>> import numpy as np
    >>> def forward(params, state, images, *, train, key):
    ...     return images.reshape(len(images), -1) @ params, state
    >>> dataset = np.ones((2, 1, 1, 1), np.float32), np.array([0, 1])
    >>> at_minimum = distance_from_minimum(forward, np.zeros((1, 2)), {}, dataset, l1=0.1)
    >>> elsewhere = distance_from_minimum(forward, np.ones((1, 2)), {}, dataset, l1=0.1)
    >>> at_minimum.norm.item(), round(elsewhere.norm.item(), 4)  # 0.1·√2
    (0.0, 0.1414)

    Beck (2017), theorem 10.7: r = 0 characterises stationary points.
    """
    check_count("batch_size", batch_size)
    for leaf in jax.tree.leaves(l1):
        check_range("l1", leaf, 0)
    check_range("l2", l2, 0)
    images, labels = check_dataset(dataset)
    check_labels(module, params, state, images, labels)
    data = jnp.asarray(images), jnp.asarray(labels)
    gradient = _mean_gradient(
        params, state, data, normalization, module=module, batch_size=min(batch_size, len(images))
    )
    return _residual_norms(params, gradient, l1, l2, where=where)


@functools.partial(jax.jit, static_argnames="where")
def _residual_norms(
    params: PyTree, gradient: PyTree, l1: Any, l2: Any, *, where: Where
) -> MinimumDistance:
    on = penalised(params, where)
    gradient = jax.tree.map(lambda g, w, p: g + p * l2 * w, gradient, params, on)
    residual = jax.tree.map(
        lambda w, g, l1, p: w - soft_threshold(w - g, p * l1),
        params,
        gradient,
        spread(l1, params),
        on,
    )
    norm = tree_norm(residual)
    tiny = jnp.finfo(norm.dtype).tiny
    weight_norm = jnp.maximum(tree_norm(params), tiny)
    return MinimumDistance(norm, norm / weight_norm, tree_norm(gradient))


@functools.partial(jax.jit, static_argnames=("module", "batch_size"))
def _mean_gradient(
    params: PyTree,
    state: PyTree,
    data: tuple[Array, Array],
    normalization: Normalization | None,
    *,
    module: Any,
    batch_size: int,
) -> PyTree:
    images, labels = data
    num = len(images)

    def batch_loss(params: PyTree, rows: Array, counts: Array) -> Float[Array, ""]:
        batch = images[rows], labels[rows]
        return counts @ score(module, params, state, batch, normalization, train=False)[0] / num

    def add_batch(total: PyTree, xs: tuple[Array, Array]) -> tuple[PyTree, None]:
        gradient = canonical_convolutions(jax.grad(batch_loss))(params, *xs)
        return jax.tree.map(jnp.add, total, gradient), None

    rows = _batch_rows(num, batch_size)
    counts = (jnp.arange(rows.size) < num).reshape(rows.shape).astype(jnp.float32)
    zeros = jax.tree.map(lambda w: jnp.zeros(jnp.shape(w), wide_type(jnp.result_type(w))), params)
    return jax.lax.scan(add_batch, zeros, (rows, counts))[0]
