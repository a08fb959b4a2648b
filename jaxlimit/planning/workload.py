"""The size of a run: its weights, its examples and its linearisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxlimit import curvature
from jaxlimit._core import sharding
from jaxlimit._core.batches import first_batch, leading_size
from jaxlimit._core.host import HostBatches
from jaxlimit._core.weights import Where, flatten_weights, is_weight

MODES = ("linearized", "forward-over-reverse")


class Workload(NamedTuple):
    """The size of a product, in counts and bytes.

    Attributes:
        dim: D, the weights under study.
        itemsize: bytes of one entry of a vector.
        held: bytes of parameters, operands and data, which are needed throughout.
        linearization: bytes that a linearisation over all examples keeps.
        num_examples: number of examples.
        batch_size: size of the largest batch.
    """

    dim: int
    itemsize: int
    held: int
    linearization: int
    num_examples: int
    batch_size: int


def measure(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    where: Where = is_weight,
    product_dtype: Any = None,
) -> Workload:
    """Count the size of the Hessian product of a loss; nothing runs.

    Args:
        loss: see `curvature.hessian_matvec`.
        params: see `curvature.hessian_matvec`.
        batches: see `curvature.hessian_matvec`.
        *operands: see `curvature.hessian_matvec`.
        where: leaves under study.
        product_dtype: as in `curvature.MatvecSettings`.

    Returns:
        The `Workload`.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: jnp.mean(jnp.tanh(batch @ w) ** 2)
    >>> measure(loss, jnp.zeros(3), jnp.ones((2, 4, 3)))[:3]
    (3, 4, 108)
    """
    kept = curvature.linearization_bytes(
        loss, params, batches, *operands, where=where, product_dtype=product_dtype
    )
    weights = jax.eval_shape(lambda p: flatten_weights(p, where)[0], params)
    is_list = isinstance(batches, list)
    stacks = batches if is_list else [first_batch(batches)]
    sizes = [leading_size(batch) for batch in stacks]
    num_batches = 1 if is_list else jax.tree.leaves(batches)[0].shape[0]
    if isinstance(batches, HostBatches):
        batches = max(batches, key=leading_size)  # the device has one at a time
    return Workload(
        dim=weights.size,
        itemsize=weights.dtype.itemsize,
        held=_bytes((params, batches, operands)),
        linearization=kept,
        num_examples=num_batches * sum(sizes),
        batch_size=max(sizes),
    )


def prepare(
    loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    where: Where = is_weight,
    mesh: Mesh | None = None,
    **settings: Any,
) -> tuple[Workload, dict[str, Any]]:
    """Measure the size of a run on each device, and the modes that its plan may use.

    Args:
        loss: see `curvature.hessian_matvec`.
        params: see `curvature.hessian_matvec`.
        batches: see `curvature.hessian_matvec`.
        *operands: see `curvature.hessian_matvec`.
        where: leaves under study.
        mesh: devices that share examples and vectors; each keeps its part of the basis.
        **settings: further settings of `curvature.hessian_matvec`, which may rule out modes.

    Returns:
        The `Workload` of a device, and `modes` as an argument of `plan`.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: jnp.mean(jnp.tanh(batch @ w) ** 2)
    >>> prepare(loss, jnp.zeros(3), jnp.ones((2, 4, 3)), product_dtype=jnp.bfloat16)[1]["modes"]
    ('linearized',)
    """
    dtype = settings.get("product_dtype")
    workload = measure(loss, params, batches, *operands, where=where, product_dtype=dtype)
    if mesh is not None:
        workload = share(workload, sharding.num_shards(mesh))
    if isinstance(batches, HostBatches):
        return workload, {"modes": MODES[1:]}
    return workload, {"modes": _modes(workload.linearization, **settings)}


def _modes(
    linearization: int,
    mode: str = "auto",
    memory_budget: float = float("inf"),
    product_dtype: Any = None,
    shard_params: bool = False,
    **others: Any,
) -> tuple[str, ...]:
    del others
    if mode != "auto":
        # In every mode of differentiation, a product either keeps its primal pass or repeats it.
        return MODES[:1] if mode == "linearized" else MODES[1:]
    if product_dtype is not None:
        return ("linearized",)
    if shard_params:
        return ("forward-over-reverse",)
    return MODES if linearization <= memory_budget else ("forward-over-reverse",)


def share(workload: Workload, num_devices: int) -> Workload:
    """Return the part of a workload that each device of a mesh has.

    Parameters and data count whole, although the data are divided too.

    Args:
        workload: that of one device.
        num_devices: number of devices.

    Returns:
        The `Workload` of each device.

    >>> share(Workload(10, 4, 100, 64, 8, 4), 2)
    Workload(dim=5, itemsize=4, held=100, linearization=32, num_examples=4, batch_size=2)
    """
    fields = ("dim", "linearization", "num_examples", "batch_size")
    return workload._replace(
        **{name: -(-getattr(workload, name) // num_devices) for name in fields}
    )


def _bytes(tree: Any) -> int:
    return sum(int(leaf.size) * leaf.dtype.itemsize for leaf in map(_shaped, jax.tree.leaves(tree)))


def _shaped(leaf: Any) -> Any:
    return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
