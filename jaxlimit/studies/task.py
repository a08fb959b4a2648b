"""The network, loss and data that a user passes to a study, checked once."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from jaxlimit._core.losses import mean_loss
from jaxlimit._core.sharding import check_mesh
from jaxlimit._core.weights import Where, is_weight
from jaxlimit.formats import Checkpoint
from jaxlimit.studies.data import held_batches


@dataclasses.dataclass(frozen=True)
class Task:
    """A trained network with its loss and its data.

    Attributes:
        loss: `loss(params, batch, *operands)`, the mean data loss over the batch's examples in
            evaluation mode, without penalties; or their losses, or losses and weights (see
            `curvature.hessian_matvec`).
        params: the trained parameters, a pytree of real floating arrays.
        batches: training data: leaves [num_batches, batch, ...], a list of batches, or a loader
            that can be iterated over repeatedly.
        operands: passed on to `loss` and `accuracy`, such as BatchNorm statistics.
        held_out: data not used in training, in any of these forms.
        accuracy: `accuracy(params, batch, *operands)`, the share of a batch that is right; or one
            number for each example, 1 if it is right; or these and weights in [0, 1].
        where: which leaves are weights under study.
        checkpoint: from `formats.load`; pruned parameters are written back in its form.
        mesh: devices that share the training examples, and the vectors of the spectrum: a
            `jax.sharding.Mesh` over devices of this process.
        module: the network, if it is one of `jaxlimit.models`, to count the bytes of its compressed
            form; by default that of the loss.
        memory: bytes that the examples may take, on the host and on the device; what exceeds them
            is kept in a file and fetched batch by batch (see `studies.held_batches`).
    """

    loss: Callable
    params: Any
    batches: Any
    operands: tuple = ()
    held_out: Any = None
    accuracy: Callable | None = None
    where: Where = is_weight
    checkpoint: Checkpoint | None = None
    mesh: Mesh | None = None
    module: Any = None
    memory: float | None = None


def check_task(task: Any, *, name: str = "task") -> Task:
    """Return a task with its data held, or raise if it is not valid.

    Args:
        task: the task.
        name: its name in error messages.

    Returns:
        The task; its batches are those that the library works on.

    Raises:
        TypeError: if it is no `Task`, a field is no function, or a loss returns none of the three.
        ValueError: if there are no data, the parameters are not finite, or the mesh has devices of
            other processes.

    >>> import jax.numpy as jnp
    >>> def loss(w, batch):
    ...     return jnp.mean((batch @ w) ** 2)
    >>> task = check_task(Task(loss, jnp.ones(2), [jnp.eye(2)]))
    >>> check_task(Task(loss, jnp.ones(2), []))
    Traceback (most recent call last):
    ValueError: batches must hold at least one batch, got an empty list
    """
    if not isinstance(task, Task):
        raise TypeError(f"{name} must be a jaxlimit.Task, got {type(task).__name__}")
    if not isinstance(task.operands, tuple):
        raise TypeError(f"{name}: operands must be a tuple, got {type(task.operands).__name__}")
    for field in ("loss", "accuracy"):
        function = getattr(task, field)
        if not callable(function) and not (function is None and field == "accuracy"):
            raise TypeError(f"{name}: {field} must be a function, got {type(function).__name__}")
    if task.mesh is not None and check_mesh(task.mesh).is_multi_process:
        raise ValueError(f"{name}: mesh must have devices of this process alone")
    batches = held_batches(task.batches, memory=task.memory)
    mean_loss(task.loss, task.params, batches, task.operands)
    held_out = task.held_out
    if held_out is not None:
        held_out = held_batches(held_out, name="held_out", memory=task.memory)
        if task.accuracy is not None:
            mean_loss(task.accuracy, task.params, held_out, task.operands)
    return dataclasses.replace(task, batches=batches, held_out=held_out)
