"""All examples, distributed over the devices of a mesh, and means over them.

Programs are manual (`jax.shard_map`): a loss sees plain local arrays, as on one device.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxlimit._core import sharding
from jaxlimit._core.batches import Group, first_batch, group_batches, leading_size, mean_over
from jaxlimit._core.host import HostBatches, batch_like


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shares:
    """All examples, distributed over the devices of a mesh; each counts once in the sum.

    Attributes:
        weights: for each stack of `own` and then of `common`, its share of all examples, over
            the number of devices.
        own: stacks of batches with leaves [devices, num_batches, batch, ...], the first axis split.
        common: stacks with leaves [1, batch, ...] of fewer examples than devices, which all have.
        mesh: the devices.
    """

    weights: tuple[float, ...]
    own: tuple[Any, ...]
    common: tuple[Any, ...]
    mesh: Mesh = field(metadata={"static": True})


def groups_of_device(weights: tuple, own: tuple, common: tuple) -> tuple[Group, ...]:
    """Return the groups of one device from its `Shares`, the first axis of `own` off."""
    return tuple(map(Group, weights, own + common))


Examples = Shares | tuple[Group, ...]


def examples_of(batches: Any, mesh: Mesh | None) -> Examples:
    """Distribute all examples over a mesh, or group them on one device."""
    return group_batches(batches) if mesh is None else share_out(batches, mesh)


def share_out(batches: Any, mesh: Mesh) -> Shares:
    """Distribute the examples of all batches, in batches of the same size over the whole mesh.

    Batches of examples of one kind form one pool: a loss that is a mean over examples is the same
    for any batches. Batches that stay on the host are distributed whole.
    """
    n = sharding.num_shards(mesh)
    if isinstance(batches, HostBatches):
        return _share_out_whole(batches, n, mesh)
    size = max(1, leading_size(first_batch(batches)) // n)
    own, common, counts = [], [], []
    pools = _pools(batches)
    for pool in pools:
        each, rest = divmod(leading_size(pool), n)
        full, tail = each // size * size, each % size
        for start, length, batch in ((0, full, size), (full, tail, tail)):
            if length:
                own.append(jax.tree.map(partial(_deal, n, each, start, length, batch), pool))
                counts.append(n * length)
        if rest:
            common.append(jax.tree.map(lambda leaf, k=rest: leaf[-k:][None], pool))
    counts += [leading_size(jax.tree.map(lambda leaf: leaf[0], stack)) for stack in common]
    total = sum(map(leading_size, pools))
    return Shares(
        tuple(count / total / n for count in counts),
        sharding.place(tuple(own), sharding.sharded(mesh)),
        sharding.place(tuple(common), sharding.replicated(mesh)),
        mesh,
    )


def _share_out_whole(batches: HostBatches, n: int, mesh: Mesh) -> Shares:
    """Deal the places of batches out, and those that are over to all devices."""
    own, common = [], []
    for stack in batches.stacks():
        size = leading_size(batch_like(stack))
        each = leading_size(stack) // n
        if each:
            places = jax.tree.map(lambda x, k=each: x[: n * k].reshape(n, k), stack)
            own.append((n * each * size, places))
        if leading_size(stack) % n:
            rest = jax.tree.map(lambda x, k=each: x[n * k :], stack)
            common.append((leading_size(rest) * size, rest))
    counts = [count for count, _ in own + common]
    return Shares(
        tuple(count / sum(counts) / n for count in counts),
        sharding.place(tuple(stack for _, stack in own), sharding.sharded(mesh)),
        sharding.place(tuple(stack for _, stack in common), sharding.replicated(mesh)),
        mesh,
    )


def _deal(n: int, each: int, start: int, length: int, batch: int, leaf: Any) -> Any:
    """Cut `length` of the `each` examples of every device, from the `start`-th, into batches."""
    rows = leaf[: n * each].reshape(n, each, *leaf.shape[1:])[:, start : start + length]
    return rows.reshape(n, length // batch, batch, *leaf.shape[1:])


def _pools(batches: Any) -> list[Any]:
    """Join batches whose examples have the same structure, shapes and types."""
    if not isinstance(batches, list):
        return [jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batches)]
    alike: dict[Any, list] = {}
    for batch in batches:
        leading_size(batch)
        kinds = [(jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in jax.tree.leaves(batch)]
        alike.setdefault((jax.tree.structure(batch), *kinds), []).append(batch)
    return [
        jax.tree.map(lambda *leaves: (np if _on_host(leaves) else jnp).concatenate(leaves), *pool)
        for pool in alike.values()
    ]


def _on_host(leaves: Any) -> bool:
    return all(isinstance(leaf, np.ndarray) for leaf in leaves)


def mean(examples: Examples, of_batch: Callable, *operands: Any) -> Array:
    """Average `of_batch(batch, *operands)` over all examples: on a mesh one all-reduce."""
    if not isinstance(examples, Shares):
        return mean_over(examples, lambda batch: of_batch(batch, *operands))
    mesh = examples.mesh

    def of_device(common: tuple, own: Any) -> Array:
        weights, rest, operands = common
        groups = groups_of_device(weights, _first(own), rest)
        part = mean_over(groups, lambda batch: of_batch(batch, *operands))
        return jax.lax.psum(part, mesh.axis_names[0])

    common = (examples.weights, examples.common, operands)
    return sharding.shard_map(of_device, mesh, P())(common, examples.own)


def _first(own: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], own)
