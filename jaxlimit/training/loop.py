"""The training loop: an epoch is one compiled scan over data that stays on the device."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray, PyTree

from jaxlimit._core import sharding
from jaxlimit._core.batches import check_like
from jaxlimit._core.checkpoints import Checkpoints, check_directory
from jaxlimit._core.checks import check_count, check_floating_tree, check_type
from jaxlimit._core.memory import catching_refusals
from jaxlimit._core.moved import gathers_keywords
from jaxlimit._core.sharding import takes_mesh
from jaxlimit._core.weights import Where, is_weight
from jaxlimit.training.config import TrainingConfig, learning_rates
from jaxlimit.training.data import (
    Normalization,
    channel_statistics,
    check_dataset,
    normalize,
)
from jaxlimit.training.epoch import Carry, Data, Program, Strengths, lay_out
from jaxlimit.training.epoch import run_epoch as _epoch
from jaxlimit.training.history import History, Metrics, empty_metrics
from jaxlimit.training.identity import DEFAULTS, run_identity
from jaxlimit.training.layout import Layout
from jaxlimit.training.network import check_labels
from jaxlimit.training.optimizer import adam, penalised, sgd
from jaxlimit.training.settings import Monitor, Start, as_start


class TrainingResult(NamedTuple):
    """A trained network.

    Attributes:
        params: its parameters.
        state: its other variables, such as `{"batch_stats": ...}`; `{}` if none.
        normalization: the normalisation of its images, which evaluation must use too.
        history: the metrics of every epoch, [epochs].
        resumed_from: epochs done before, by the checkpoint; 0 without one.
    """

    params: PyTree
    state: PyTree
    normalization: Normalization
    history: Metrics
    resumed_from: int


@gathers_keywords(start=Start, monitor=Monitor)
@takes_mesh
def fit(
    module: Any,
    dataset: Any,
    config: TrainingConfig,
    *,
    start: Start | TrainingResult | None = None,
    mask: PyTree = None,
    where: Where = is_weight,
    between: tuple[int, int] | None = None,
    monitor: Monitor | None = None,
    mesh: Mesh | None = None,
    shard_params: bool = False,
) -> TrainingResult:
    """Train a network by SGD or Adam on mean cross-entropy + l1·‖w‖₁ + ½·l2·‖w‖₂².

    `TrainingConfig` defines the step. Every epoch is one run of one compiled program. With a
    `Monitor(checkpoint_dir=...)`, the same call later continues from the newest checkpoint, and
    ends, on the same machine, with the same bits as a run without interruption.

    Costs the arithmetic of three forward passes a step, twice that with a `sam_radius`; memory of
    three copies of the parameters (four with Adam), the training images as given, and the
    activations of a slice.

    Args:
        module: a Linen module, `__call__(images [n, h, w, c], *, train)` to logits; or a function
            `(params, state, images, *, train, key) -> (logits, state)`, together with `start`. It
            is called with floating images, and in evaluation with `key` None.
        dataset: images uint8 [n, h, w, c] and labels [n], the first two of a sequence; floating
            images count as normalised.
        config: the settings.
        start: parameters, state and normalization to start from, or the result of another run.
        mask: pytree of Booleans like the parameters; False entries are set to 0 and stay 0.
        where: `where(name, leaf)` says which leaves the penalties act on; by default all but the
            scale and bias of layers named as normalisation.
        between: run only a part of the `epochs` of `config`, after the first number and up to the
            second, with their rates and order of images in the whole run; the velocity starts at 0.
            By default all.
        monitor: callbacks, the file of metrics and checkpoints.
        mesh: devices to share each batch, a `jax.sharding.Mesh`, along its first axis. The steps
            are the same up to the order of summation. Every device has all training images.
        shard_params: keep only a part of each parameter and its momentum on each device of `mesh`,
            split along the longest axis that their number divides, also in the result.

    Returns:
        The `TrainingResult`.

    Raises:
        TypeError: if `start` or `dataset` is of another type.
        ValueError: for a data set that does not suit the network or the batch size, a checkpoint
            of another run (says what differs) or a damaged one, or `shard_params` without `mesh`.
        FloatingPointError: if the loss or a weight stops being finite; says in which epoch and
            step, and for which seed. The last good checkpoint stays.
        MemoryError: a `planning.DeviceMemoryError` if the device runs out of memory in an epoch.
            The last checkpoint stays.
        OSError: if a checkpoint or the metrics cannot be written; the checkpoint before it stays
            whole. If another run is using `checkpoint_dir`; says which process and since when.

    >>> import flax.linen as nn, jax, numpy as np
    >>> def forward(params, state, images, *, train, key):
    ...     return images.reshape(len(images), -1) @ params["kernel"], state
    >>> images = np.repeat(np.arange(2, dtype=np.uint8), 64).reshape(128, 1, 1, 1)
    >>> result = fit(
    ...     forward,
    ...     (images, images.ravel().astype(np.int32)),
    ...     TrainingConfig(epochs=2, learning_rate=0.5, batch_size=16),
    ...     start=Start({"kernel": np.zeros((1, 2), np.float32)}),
    ... )
    >>> result.history.accuracy[-1].item()
    1.0
    """
    start, monitor = as_start(start), monitor or Monitor()
    check_type("monitor", monitor, Monitor)
    check_directory(monitor.checkpoint_dir)
    if shard_params and mesh is None:
        raise ValueError(
            "mesh must be given with shard_params, to spread the parameters over; got None"
        )
    done, end = _check_between(between, config.epochs)
    images, labels = check_dataset(dataset)
    rates = learning_rates(config, _num_steps(len(images), config.batch_size))
    data = Data(images, labels, start.normalization or channel_statistics(images))
    key = _keys(config.seed)
    params, state = _first_network(module, key, data, start, mask)
    carry = Carry(params, state, _first_state(params, config, key))
    one = jax.tree.map(lambda leaf: leaf[(0,) * key.ndim], carry)
    check_labels(module, one.params, one.state, images, labels)
    layout = Layout(mesh, shard_params)
    run_epoch = _bind_epoch(module, config, key, data, mask, where, layout)

    def identity() -> dict:
        image = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
        example = (one.params, one.state, image)
        arrays = {"data": tuple(data), "start": (carry, mask)}
        told = (module, config, carry.params, example, penalised(one.params, where))
        return run_identity(*told, **arrays) | ({} if between is None else {"between": [done, end]})

    with _checkpoints_of(monitor, identity) as checkpoints:
        carry, past = _resume(checkpoints, lay_out(carry, layout), key.shape, done)
        history = _history_of(monitor, past, checkpoints)
        for epoch in range(done + len(past.epoch) + 1, end + 1):
            carry, metrics = _guarded(run_epoch, carry, epoch, rates, config, checkpoints)
            history.append(metrics)
            tree = {**carry._asdict(), "history": history.stacked()._asdict()}
            checkpoints.save(epoch, tree, last=epoch == end)
    params = carry.params if shard_params else sharding.local(carry.params, mesh)
    state = sharding.local(carry.state, mesh)
    return TrainingResult(params, state, data.normalization, history.stacked(), len(past.epoch))


def _checkpoints_of(monitor: Monitor, identity: Callable[[], dict]) -> Checkpoints:
    return Checkpoints(
        monitor.checkpoint_dir,
        monitor.checkpoint_every,
        identity,
        unit="epoch",
        defaults=DEFAULTS,
        optional=("program", "penalised"),
    )


def _history_of(monitor: Monitor, past: Metrics, checkpoints: Checkpoints) -> History:
    if len(past.epoch) and monitor.on_resume is not None:
        monitor.on_resume(past)
    path = monitor.metrics_path if jax.process_index() == 0 else None
    return History(past, monitor.on_epoch, path, checkpoints.describe)


def _guarded(
    run_epoch: Callable,
    carry: Carry,
    epoch: int,
    rates: Any,
    config: TrainingConfig,
    checkpoints: Checkpoints,
) -> tuple[Carry, Metrics]:
    """Run an epoch, or raise an error that says where the run can continue."""
    with catching_refusals(
        f"in epoch {epoch} of training ({checkpoints.describe()}): "
        "raise accumulate or lower batch_size"
    ):
        carry, losses, finite, metrics = run_epoch(carry, epoch, rates[epoch - 1])
        _check_finite(losses, finite, epoch, config, checkpoints)
    return carry, metrics


def _check_between(between: tuple[int, int] | None, epochs: int) -> tuple[int, int]:
    if between is None:
        return 0, epochs
    if not isinstance(between, tuple | list) or len(between) != 2:
        raise TypeError(f"between must be None or two numbers of epochs, got {between!r}")
    start, end = (check_count("between", epoch, 0) for epoch in between)
    if not start <= end <= epochs:
        raise ValueError(f"between must increase and end by epochs {epochs}, got {between!r}")
    return start, end


def _num_steps(num_images: int, batch_size: int) -> int:
    if batch_size > num_images:
        raise ValueError(
            f"batch_size must be at most the number of images {num_images}, got {batch_size}"
        )
    return num_images // batch_size


def _keys(seed: int | tuple[int, ...]) -> PRNGKeyArray:
    if isinstance(seed, tuple):
        return jnp.stack([jax.random.key(one) for one in seed])
    return jax.random.key(seed)


def _first_network(
    module: Any, key: PRNGKeyArray, data: Data, start: Start, mask: PyTree
) -> tuple[PyTree, PyTree]:
    params, state = start.params, start.state
    if params is None and isinstance(module, nn.Module):
        image = normalize(data.images[:1], data.normalization)
        params, state = _initialize(key, image, module=module)
    elif params is None:
        raise ValueError("params must be given when module is a function, got None")
    else:
        check_floating_tree("params", params)
        # Copies, one for each seed, since the program of an epoch overwrites its arguments.
        params, state = jax.tree.map(
            lambda leaf: jnp.array(jnp.broadcast_to(leaf, (*key.shape, *jnp.shape(leaf)))),
            (params, state or {}),
        )
    if mask is not None:
        check_like("mask", mask, jax.tree.map(lambda w: w[(0,) * key.ndim], params))
        params = jax.tree.map(lambda w, keep: jnp.where(keep, w, 0), params, mask)
    return params, state


def _first_state(params: PyTree, config: TrainingConfig, key: PRNGKeyArray) -> PyTree:
    """Return the initial state of the optimizer, one for each seed."""
    optimizer = (
        adam(0.0, config.momentum, 0.0, 0.0)
        if config.optimizer == "adam"
        else sgd(0.0, config.momentum, 0.0, 0.0, proximal=False)
    )
    return jax.vmap(optimizer.init)(params) if key.ndim else optimizer.init(params)


@functools.partial(jax.jit, static_argnames="module")
def _initialize(key: PRNGKeyArray, images: Array, *, module: nn.Module) -> tuple[PyTree, PyTree]:
    def one(key: PRNGKeyArray) -> tuple[PyTree, PyTree]:
        state = dict(module.init(key, images, train=False))
        return state.pop("params"), state

    return jax.vmap(one)(key) if key.ndim else one(key)


def _resume(
    checkpoints: Checkpoints, carry: Carry, batch: tuple[int, ...], start: int
) -> tuple[Carry, Metrics]:
    tree = checkpoints.restore(
        lambda epoch: {**carry._asdict(), "history": empty_metrics(batch, epoch - start)._asdict()}
    )
    if tree is None:
        return carry, empty_metrics(batch, 0)
    past = {name: np.asarray(values) for name, values in tree.pop("history").items()}
    return Carry(**tree), Metrics(**past)


def _check_finite(
    losses: Array, finite: Array, epoch: int, config: TrainingConfig, checkpoints: Checkpoints
) -> None:
    if np.all(finite):
        return
    steps = losses.shape[-1]
    bad = ~np.isfinite(np.reshape(losses, (-1, steps)))
    what = "the training loss" if bad.any() else "a weight, its velocity or the network's state"
    if isinstance(config.seed, tuple):
        seeds = [str(seed) for seed, fine in zip(config.seed, finite, strict=True) if not fine]
        what += f" of seed {', '.join(seeds)}"
    # A state need not enter the loss, so any step may have made it infinite.
    step = f"step {bad.any(0).argmax() + 1} of {steps}" if bad.any() else "no loss shows which step"
    raise FloatingPointError(
        f"{what} stopped being finite in epoch {epoch}, {step} (learning rate at most "
        f"{config.learning_rate:g}); {checkpoints.describe()}"
    )


def _bind_epoch(
    module: Any,
    config: TrainingConfig,
    key: PRNGKeyArray,
    data: Data,
    mask: PyTree,
    where: Where,
    layout: Layout,
) -> Callable:
    """Bind what all epochs share: arrays as operands, settings of the program as static."""
    images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
    return functools.partial(
        _epoch,
        key=layout.whole(key),
        data=Data(layout.whole(images), layout.whole(labels), data.normalization),
        mask=layout.params(mask),
        strengths=Strengths.of(config),
        program=Program.of(config, module, where, layout),
    )
