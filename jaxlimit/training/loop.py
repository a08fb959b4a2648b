"""The training loop: an epoch is one compiled scan over data that stays on the device."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Shaped

from jaxlimit.training.config import TrainingConfig, learning_rates
from jaxlimit.training.data import (
    Normalization,
    augment,
    channel_statistics,
    check_dataset,
    normalize,
)


class Metrics(NamedTuple):
    """How an epoch went, averaged over its steps; in a result, arrays over the epochs.

    Attributes:
        loss: `data_loss` plus both penalties of the weights at the epoch's end.
        data_loss: mean cross-entropy of the batches as they were met, augmented, in training mode.
        accuracy: share of those images whose label had the largest logit.
        learning_rate: the rate of the last step.
    """

    loss: Any
    data_loss: Any
    accuracy: Any
    learning_rate: Any


class TrainingResult(NamedTuple):
    """A trained network.

    Attributes:
        params: its parameters, float32.
        state: its other collections (`batch_stats`), `{}` if none.
        normalization: what its images were normalised by.
        history: the metrics of every epoch, each [epochs].
    """

    params: PyTree
    state: PyTree
    normalization: Normalization
    history: Metrics


class _Carry(NamedTuple):
    params: PyTree
    state: PyTree
    velocity: PyTree


def fit(
    module: Any,
    dataset: Any,
    config: TrainingConfig,
    *,
    normalization: Normalization | None = None,
    on_epoch: Callable[[int, Metrics], None] | None = None,
) -> TrainingResult:
    """Train a network by SGD with momentum under an l1 penalty.

    Args:
        module: a Linen module, `__call__(images [n, h, w, c], *, train)` to logits.
        dataset: images uint8 [n, h, w, c] and labels [n].
        config: the settings.
        normalization: of the images; measured on them if not given.
        on_epoch: called with the number of epochs done and their last one's metrics.

    Returns:
        The `TrainingResult`.

    Raises:
        FloatingPointError: if the loss or a weight stops being finite; says where.
    """
    images, labels = check_dataset(dataset)
    steps = len(images) // config.batch_size
    if not steps:
        raise ValueError(
            f"batch_size must be at most the number of images {len(images)}, "
            f"got {config.batch_size}"
        )
    normalization = normalization or channel_statistics(images)
    rates = learning_rates(config, steps)
    key = jax.random.key(config.seed)
    carry = _start(key, normalize(images[:1], normalization), module=module)
    data = jnp.asarray(images), jnp.asarray(labels)
    history = []
    for epoch in range(config.epochs):
        carry, losses, metrics = _epoch(
            carry,
            *data,
            normalization,
            jax.random.fold_in(key, epoch + 1),
            rates[epoch],
            (config.momentum, config.l1, config.l2),
            module=module,
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            augmented=config.augment,
            proximal=config.l1_method == "proximal",
        )
        metrics = Metrics(*map(float, metrics))
        _check_finite(np.asarray(losses), metrics, epoch)
        history.append(metrics)
        if on_epoch is not None:
            on_epoch(epoch + 1, metrics)
    return TrainingResult(
        carry.params,
        carry.state,
        normalization,
        Metrics(*map(np.asarray, zip(*history, strict=True))),
    )


def _check_finite(losses: np.ndarray, metrics: Metrics, epoch: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        raise FloatingPointError(
            f"training loss became {losses[bad[0]]} in epoch {epoch + 1}, step {bad[0] + 1} "
            f"of {len(losses)}"
        )
    if not np.isfinite(metrics.loss):
        raise FloatingPointError(
            f"the weights became non-finite in epoch {epoch + 1}, step {len(losses)} (its last)"
        )


@functools.partial(jax.jit, static_argnames="module")
def _start(key: PRNGKeyArray, images: Array, *, module: Any) -> _Carry:
    state = dict(module.init(key, images, train=False))
    params = state.pop("params")
    return _Carry(params, state, jax.tree.map(jnp.zeros_like, params))


@functools.partial(
    jax.jit,
    static_argnames=("module", "batch_size", "accumulate", "augmented", "proximal"),
    donate_argnames="carry",
)
def _epoch(
    carry: _Carry,
    images: Shaped[Array, "n h w c"],
    labels: Int[Array, " n"],
    normalization: Normalization,
    key: PRNGKeyArray,
    rates: Float[Array, " steps"],
    strengths: tuple[Any, Any, Any],
    *,
    module: Any,
    batch_size: int,
    accumulate: int,
    augmented: bool,
    proximal: bool,
) -> tuple[_Carry, Float[Array, " steps"], Metrics]:
    momentum, l1, l2 = strengths
    order_key, step_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))[: len(rates) * batch_size]
    slices = order.reshape(len(rates), accumulate, batch_size // accumulate)
    penalised = _penalised(carry.params, carry.state)

    def step(carry: _Carry, xs: tuple) -> tuple[_Carry, tuple]:
        rows, key, rate = xs
        gradient, state, loss, accuracy = _batch_gradient(
            carry, images, labels, normalization, rows, key, module=module, augmented=augmented
        )

        def pull(g: Array, w: Array, on: bool) -> Array:
            force = l2 * w if proximal else l1 * jnp.sign(w) + l2 * w
            return g + force if on else g

        optimizer = optax.chain(
            optax.stateless(lambda g, w: jax.tree.map(pull, g, w, penalised)),
            optax.trace(momentum),
            optax.scale_by_learning_rate(rate),
        )
        opt_state = (optax.EmptyState(), optax.TraceState(carry.velocity), optax.EmptyState())
        updates, opt_state = optimizer.update(gradient, opt_state, carry.params)
        params = optax.apply_updates(carry.params, updates)
        if proximal:
            threshold = rate * l1 / (1 - momentum)
            params = jax.tree.map(
                lambda w, on: soft_threshold(w, threshold) if on else w, params, penalised
            )
        return _Carry(params, state, opt_state[1].trace), (loss, accuracy)

    keys = jax.random.split(step_key, len(rates))
    carry, (losses, accuracies) = jax.lax.scan(step, carry, (slices, keys, rates))
    data_loss = losses.mean()
    penalty = _penalty(carry.params, penalised, l1, l2)
    return carry, losses, Metrics(data_loss + penalty, data_loss, accuracies.mean(), rates[-1])


def soft_threshold(x: Float[Array, "..."], threshold: Any) -> Float[Array, "..."]:
    """Apply the proximal operator of `threshold`·|x|: sign(x)·max(|x| - threshold, 0).

    >>> import jax.numpy as jnp
    >>> soft_threshold(jnp.array([-3.0, 0.5]), 1.0).tolist()
    [-2.0, 0.0]
    """
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - threshold, 0)


def _batch_gradient(
    carry: _Carry,
    images: Array,
    labels: Array,
    normalization: Normalization,
    rows: Int[Array, "accumulate slice"],
    key: PRNGKeyArray,
    *,
    module: Any,
    augmented: bool,
) -> tuple[PyTree, PyTree, Array, Array]:
    def slice_loss(params: PyTree, state: PyTree, rows: Array, key: PRNGKeyArray) -> tuple:
        shift_key, dropout_key = jax.random.split(key)
        batch = images[rows]
        batch = normalize(augment(batch, shift_key) if augmented else batch, normalization)
        logits, state = module.apply(
            {"params": params, **state},
            batch,
            train=True,
            mutable=list(state),
            rngs={"dropout": dropout_key},
        )
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()
        return loss, (state, (logits.argmax(-1) == labels[rows]).mean())

    def add_slice(total: tuple, xs: tuple) -> tuple[tuple, None]:
        state, sums = total
        (loss, (state, accuracy)), gradient = jax.value_and_grad(slice_loss, has_aux=True)(
            carry.params, state, *xs
        )
        return (state, jax.tree.map(jnp.add, sums, (gradient, loss, accuracy))), None

    zeros = jax.tree.map(jnp.zeros_like, carry.params), jnp.zeros(()), jnp.zeros(())
    keys = jax.random.split(key, len(rows))
    (state, sums), _ = jax.lax.scan(add_slice, (carry.state, zeros), (rows, keys))
    gradient, loss, accuracy = jax.tree.map(lambda total: total / len(rows), sums)
    return gradient, state, loss, accuracy


def _penalised(params: PyTree, state: PyTree) -> PyTree:
    """Mark the leaves the penalties act on: all but those of a module that keeps batch_stats."""
    normalised = {
        path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(state.get("batch_stats", {}))
    }
    return jax.tree_util.tree_map_with_path(lambda path, _: path[:-1] not in normalised, params)


def _penalty(params: PyTree, penalised: PyTree, l1: Any, l2: Any) -> Float[Array, ""]:
    # Leaves without a penalty count 0 times their sum: so that a NaN among them shows in the loss.
    terms = jax.tree.map(
        lambda w, on: on * (l1 * jnp.abs(w).sum() + 0.5 * l2 * (w**2).sum()), params, penalised
    )
    return sum(jax.tree.leaves(terms), jnp.zeros(()))
