"""One epoch as one compiled program: a scan over its steps, with the data on the device."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Shaped

from jaxlimit._core.programs import canonical_convolutions
from jaxlimit._core.scale import wide_type
from jaxlimit._core.weights import Where
from jaxlimit.training.data import Normalization, augment, normalize
from jaxlimit.training.history import Metrics
from jaxlimit.training.layout import Layout
from jaxlimit.training.network import score
from jaxlimit.training.optimizer import adam, climb, l1_weights, penalty, sgd
from jaxlimit.training.sensitivity import sensitivity


class Carry(NamedTuple):
    """What goes from step to step."""

    params: PyTree
    state: PyTree
    opt_state: PyTree


def lay_out(carry: Carry, layout: Layout) -> Carry:
    """Put it where training wants it."""
    params, state, opt_state = carry
    return Carry(layout.params(params), layout.whole(state), layout.params(opt_state))


@functools.partial(
    jax.jit,
    static_argnames=(
        "layout",
        "module",
        "where",
        "batch_size",
        "accumulate",
        "augmented",
        "proximal",
        "by_saliency",
        "adaptive",
    ),
    donate_argnums=0,
)
def run_epoch(
    carry: Carry,
    epoch: Int[Array, ""],
    rates: Float[Array, " steps"],
    *,
    key: PRNGKeyArray,
    images: Shaped[Array, "n h w c"],
    labels: Int[Array, " n"],
    normalization: Normalization,
    mask: PyTree,
    where: Where,
    strengths: tuple[Any, Any, Any],
    layout: Layout,
    sam_radius: Any,
    l1_delta: Any,
    module: Any,
    batch_size: int,
    accumulate: int,
    augmented: bool,
    proximal: bool,
    by_saliency: bool = False,
    adaptive: bool = False,
) -> tuple[Carry, Float[Array, "... steps"], Bool[Array, "..."], Metrics]:
    """Run the steps of one epoch; return also their losses and whether all came out finite."""
    momentum, l1, l2 = strengths

    def step(l1: PyTree, carry: Carry, xs: tuple) -> tuple[Carry, tuple[Array, Array]]:
        rows, key, rate = xs
        batch = (images, labels, normalization, rows, key)
        gradient_at = functools.partial(
            _batch_gradient, layout=layout, module=module, augmented=augmented
        )
        gradient, state, loss, accuracy = gradient_at(carry, *batch)
        if sam_radius is not None:
            uphill = climb(carry.params, gradient, sam_radius, mask)
            gradient, *_ = gradient_at(carry._replace(params=uphill), *batch)
        settings = (rate, momentum, l1, l2)
        optimizer = (
            adam(*settings, where=where)
            if adaptive
            else sgd(*settings, proximal=proximal, where=where)
        )
        updates, opt_state = optimizer.update(gradient, carry.opt_state, carry.params)
        if mask is not None:
            updates = jax.tree.map(lambda u, keep: jnp.where(keep, u, 0), updates, mask)
        params = optax.apply_updates(carry.params, updates)
        return lay_out(Carry(params, state, opt_state), layout), (loss, accuracy)

    def run(carry: Carry, key: PRNGKeyArray) -> tuple:
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = jax.random.permutation(order_key, len(images))[: len(rates) * batch_size]
        rows = order.reshape(len(rates), accumulate, batch_size // accumulate)
        keys = jax.random.split(step_key, len(rates))
        # A reweighted l1 takes its weights from those of the network as they are now.
        by_weight, shares = l1, None
        if by_saliency:
            first = rows[0].reshape(-1)
            batch = normalize(images[first], normalization), labels[first]
            probe_key = jax.random.fold_in(order_key, 1)
            shares = sensitivity(module, carry.params, carry.state, batch, probe_key, where=where)
        if l1_delta is not None:
            by_weight = l1_weights(carry.params, l1_delta, strength=l1, sensitivity=shares)
        one_step = functools.partial(step, by_weight)
        carry, (losses, accuracies) = jax.lax.scan(one_step, carry, (rows, keys, rates))
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((carry, losses))]
        data_loss = losses.mean()
        loss = data_loss + penalty(carry.params, by_weight, l2, where=where)
        return carry, losses, jnp.all(jnp.stack(finite)), (loss, data_loss, accuracies.mean())

    outcome = jax.vmap(run)(carry, key) if key.ndim else run(carry, key)
    carry, losses, finite, (loss, data_loss, accuracy) = outcome[0], *layout.whole(outcome[1:])
    return carry, losses, finite, Metrics(epoch, loss, data_loss, accuracy, rates[-1])


def _batch_gradient(
    carry: Carry,
    images: Array,
    labels: Array,
    normalization: Normalization,
    rows: Int[Array, "accumulate slice"],
    key: PRNGKeyArray,
    *,
    layout: Layout,
    module: Any,
    augmented: bool,
) -> tuple[PyTree, PyTree, Array, Array]:
    """Average the gradient over the slices of a batch, the state going from slice to slice."""

    def slice_loss(params: PyTree, state: PyTree, rows: Array, key: PRNGKeyArray) -> tuple:
        shift_key, network_key = jax.random.split(key)
        rows = layout.examples(rows)
        batch = layout.examples(images[rows])
        batch = augment(batch, shift_key) if augmented else batch
        losses, correct, state = score(
            module,
            params,
            state,
            (batch, labels[rows]),
            normalization,
            train=True,
            key=network_key,
        )
        return losses.mean(), (state, correct.mean())

    def add_slice(total: tuple, xs: tuple) -> tuple[tuple, tuple[Array, Array]]:
        state, gradients = total
        score_and_gradient = canonical_convolutions(jax.value_and_grad(slice_loss, has_aux=True))
        (loss, (state, accuracy)), gradient = score_and_gradient(carry.params, state, *xs)
        return (state, jax.tree.map(jnp.add, gradients, gradient)), (loss, accuracy)

    # A scan of one slice compiles to no loop at all, so the common case costs nothing.
    zeros = jax.tree.map(lambda w: jnp.zeros_like(w, wide_type(w.dtype)), carry.params)
    keys = jax.random.split(key, len(rows))
    (state, total), scores = jax.lax.scan(add_slice, (carry.state, zeros), (rows, keys))
    gradient = jax.tree.map(lambda g, w: (g / len(rows)).astype(w.dtype), total, carry.params)
    return gradient, state, scores[0].mean(), scores[1].mean()
