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
from jaxlimit.training.config import TrainingConfig
from jaxlimit.training.data import Normalization, augment, normalize
from jaxlimit.training.history import Metrics
from jaxlimit.training.layout import Layout
from jaxlimit.training.network import score
from jaxlimit.training.optimizer import adam, climb, l1_weights, penalty, sgd
from jaxlimit.training.sensitivity import sensitivity


class Carry(NamedTuple):
    """The state that is carried from step to step."""

    params: PyTree
    state: PyTree
    opt_state: PyTree


def lay_out(carry: Carry, layout: Layout) -> Carry:
    """Place it on the devices as training needs it."""
    params, state, opt_state = carry
    return Carry(layout.params(params), layout.whole(state), layout.params(opt_state))


class Data(NamedTuple):
    """The training data, all of them on the device."""

    images: Shaped[Array, "n h w c"]
    labels: Int[Array, " n"]
    normalization: Normalization


class Strengths(NamedTuple):
    """The numbers of a step, operands of the program; None leaves a part of the step out."""

    momentum: Any
    l1: Any
    l2: Any
    sam_radius: Any
    l1_delta: Any

    @classmethod
    def of(cls, config: TrainingConfig) -> "Strengths":
        """Take them from the settings."""
        return cls(
            config.momentum,
            config.l1,
            config.l2,
            config.sam_radius or None,
            config.l1_delta or None,
        )


class Program(NamedTuple):
    """The static settings of the program of an epoch."""

    module: Any
    where: Where
    layout: Layout
    batch_size: int
    accumulate: int
    augmented: bool
    proximal: bool
    by_saliency: bool
    adaptive: bool

    @classmethod
    def of(cls, config: TrainingConfig, module: Any, where: Where, layout: Layout) -> "Program":
        """Take the rest from the settings."""
        return cls(
            module,
            where,
            layout,
            config.batch_size,
            config.accumulate,
            augmented=config.augment,
            proximal=config.l1_method == "proximal",
            by_saliency=config.l1_by == "saliency",
            adaptive=config.optimizer == "adam",
        )

    def optimizer(self, *strengths: Any) -> optax.GradientTransformation:
        """Return the step at a rate, a momentum and the strengths of both penalties."""
        if self.adaptive:
            return adam(*strengths, where=self.where)
        return sgd(*strengths, proximal=self.proximal, where=self.where)


@functools.partial(jax.jit, static_argnames="program", donate_argnums=0)
def run_epoch(
    carry: Carry,
    epoch: Int[Array, ""],
    rates: Float[Array, " steps"],
    *,
    key: PRNGKeyArray,
    data: Data,
    mask: PyTree,
    strengths: Strengths,
    program: Program,
) -> tuple[Carry, Float[Array, "... steps"], Bool[Array, "..."], Metrics]:
    """Run the steps of one epoch; return also their losses and whether all came out finite."""
    momentum, l1, l2, sam_radius, l1_delta = strengths
    layout = program.layout

    def step(l1: PyTree, carry: Carry, xs: tuple) -> tuple[Carry, tuple[Array, Array]]:
        rows, key, rate = xs
        gradient_at = functools.partial(_batch_gradient, data, rows, key, program)
        gradient, state, loss, accuracy = gradient_at(carry)
        if sam_radius is not None:
            uphill = climb(carry.params, gradient, sam_radius, mask)
            gradient, *_ = gradient_at(carry._replace(params=uphill))
        optimizer = program.optimizer(rate, momentum, l1, l2)
        updates, opt_state = optimizer.update(gradient, carry.opt_state, carry.params)
        if mask is not None:
            updates = jax.tree.map(lambda u, keep: jnp.where(keep, u, 0), updates, mask)
        params = optax.apply_updates(carry.params, updates)
        return lay_out(Carry(params, state, opt_state), layout), (loss, accuracy)

    def run(carry: Carry, key: PRNGKeyArray) -> tuple:
        order_key, step_key = jax.random.split(jax.random.fold_in(key, epoch))
        order = jax.random.permutation(order_key, len(data.images))
        slices = (program.accumulate, program.batch_size // program.accumulate)
        rows = order[: len(rates) * program.batch_size].reshape(len(rates), *slices)
        keys = jax.random.split(step_key, len(rates))
        # A reweighted l1 takes its weights from those of the network as they are now.
        by_weight, shares = l1, None
        if program.by_saliency:
            probe_key = jax.random.fold_in(order_key, 1)
            shares = _sensitivity(data, rows[0].reshape(-1), probe_key, program, carry)
        if l1_delta is not None:
            by_weight = l1_weights(carry.params, l1_delta, strength=l1, sensitivity=shares)
        one_step = functools.partial(step, by_weight)
        carry, (losses, accuracies) = jax.lax.scan(one_step, carry, (rows, keys, rates))
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((carry, losses))]
        data_loss = losses.mean()
        loss = data_loss + penalty(carry.params, by_weight, l2, where=program.where)
        return carry, losses, jnp.all(jnp.stack(finite)), (loss, data_loss, accuracies.mean())

    outcome = jax.vmap(run)(carry, key) if key.ndim else run(carry, key)
    carry, losses, finite, (loss, data_loss, accuracy) = outcome[0], *layout.whole(outcome[1:])
    return carry, losses, finite, Metrics(epoch, loss, data_loss, accuracy, rates[-1])


def _sensitivity(
    data: Data, rows: Int[Array, " batch"], key: PRNGKeyArray, program: Program, carry: Carry
) -> PyTree:
    batch = normalize(data.images[rows], data.normalization), data.labels[rows]
    at = (program.module, carry.params, carry.state, batch)
    return sensitivity(*at, key, where=program.where)


def _batch_gradient(
    data: Data,
    rows: Int[Array, "accumulate slice"],
    key: PRNGKeyArray,
    program: Program,
    carry: Carry,
) -> tuple[PyTree, PyTree, Array, Array]:
    """Average the gradient over the slices of a batch, passing the state from slice to slice."""

    def slice_loss(params: PyTree, state: PyTree, rows: Array, key: PRNGKeyArray) -> tuple:
        shift_key, network_key = jax.random.split(key)
        rows = program.layout.examples(rows)
        batch = program.layout.examples(data.images[rows])
        batch = augment(batch, shift_key) if program.augmented else batch
        losses, correct, state = score(
            program.module,
            params,
            state,
            (batch, data.labels[rows]),
            data.normalization,
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
