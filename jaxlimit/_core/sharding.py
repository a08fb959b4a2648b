"""Work over a mesh of devices: examples and vectors split along its first axis, by JAX's own means.

A device multiplies the whole of a vector with the operator of its own examples, and the sum over
devices comes back split: one all-gather before and one reduce-scatter after each product. Inside,
everything is manual (`jax.shard_map`), so that a loss sees plain local arrays and its program is
the one it has on one device. Vectors whose size no device count divides are padded with zeros.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial
from jaxtyping import Array

from jaxlimit._core.batches import Group, first_batch, group_batches, leading_size, mean_over
from jaxlimit._core.checks import is_concrete
from jaxlimit._core.host import HostMatvec, check_same_dtype

Params = ParamSpec("Params")
Result = TypeVar("Result")


def check_mesh(mesh: Any) -> Mesh:
    """Return `mesh` with axes of type Auto, whatever they were, or raise if it has none.

    Raises:
        TypeError: if it is no `jax.sharding.Mesh`.
        ValueError: if it has no axis.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    if not mesh.axis_names:
        raise ValueError(
            "mesh must have an axis, whose devices share the examples and vectors; got none"
        )
    return Mesh(mesh.devices, mesh.axis_names)


def takes_mesh(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let a function that has a keyword `mesh` meet axes of any type.

    The types of arrays on Explicit axes name their sharding, which the programs here choose
    themselves: such arguments are moved to axes of type Auto, and the mesh of a caller's
    `jax.set_mesh` is set aside. Without a mesh nothing is done.
    """

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        if kwargs.get("mesh") is None:
            return function(*args, **kwargs)
        mesh = check_mesh(kwargs.pop("mesh"))
        with on(mesh):
            moved, named = jax.tree.map(_to_auto, (args, kwargs))
            return cast(Callable, function)(*moved, **named, mesh=mesh)

    return wrapper


def _to_auto(leaf: Any) -> Any:
    sharding = getattr(leaf, "sharding", None)
    if not is_concrete(leaf) or not isinstance(sharding, NamedSharding):
        return leaf
    return jax.device_put(leaf, NamedSharding(check_mesh(sharding.mesh), sharding.spec))


def on(mesh: Mesh | None) -> AbstractContextManager:
    """Set aside the mesh of a caller's `jax.set_mesh` while working on this one."""
    if mesh is None or jax.sharding.get_abstract_mesh().empty:
        return nullcontext()
    try:
        return jax.set_mesh(None)
    except ValueError:  # under `jit`, where only the other is allowed
        return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def mesh_of(array: Any) -> Mesh | None:
    """Return the mesh that a known array is laid out on, if it is."""
    sharding = getattr(array, "sharding", None) if is_concrete(array) else None
    return cast(Mesh, sharding.mesh) if isinstance(sharding, NamedSharding) else None


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding that splits an array's `axis` over the first axis of the mesh."""
    return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names[0]))


def whole(mesh: Mesh) -> NamedSharding:
    """Return the sharding that gives every device all of an array."""
    return NamedSharding(mesh, P())


def num_shares(mesh: Mesh) -> int:
    """Return how many devices share the examples."""
    return mesh.shape[mesh.axis_names[0]]


def padded_size(dim: int, mesh: Mesh | None) -> int:
    """Return the next multiple of the number of shares."""
    return dim if mesh is None else dim + -dim % num_shares(mesh)


def share_of(dim: int, mesh: Mesh | None) -> int:
    """Return how many entries of a vector each device has."""
    return dim if mesh is None else padded_size(dim, mesh) // num_shares(mesh)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Lay arrays out over a mesh; each process holds them all, and keeps its devices' parts.

    Python numbers stay what they are, so that they take on the precision of what they multiply.
    """
    return jax.tree.map(partial(_place, sharding=sharding), tree)


def _place(array: Any, sharding: NamedSharding) -> Any:
    if isinstance(array, int | float):
        return array
    if not is_concrete(array):
        return jax.lax.with_sharding_constraint(array, sharding)
    if jax.process_count() == 1 or not getattr(array, "is_fully_addressable", True):
        return jax.device_put(array, sharding)
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array)
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Give every device all of some arrays, if there is a mesh."""
    return tree if mesh is None else place(tree, whole(mesh))


def gather(tree: Any, mesh: Mesh | None) -> Any:
    """Return arrays that every process has all of, free to go with any others."""
    if mesh is None or not is_concrete(tree):
        return tree
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(replicate(leaf, mesh))), tree)


def zeros(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None, *, on_host: bool = False) -> Array:
    """Make zeros, no device holding more than its part of the last axis, or its host for it."""
    if mesh is None:
        return jnp.zeros(shape, dtype)
    sharding = split(mesh, len(shape) - 1)
    if not on_host:
        return jnp.zeros(shape, dtype, device=sharding)
    # Made by a program, which allocates them there.
    sharding = sharding.with_memory_kind("pinned_host")
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


def split_vector(vector: Array, mesh: Mesh) -> Array:
    """Pad a vector with zeros to a size that divides, and split it."""
    size = padded_size(vector.size, mesh)
    return place(jnp.pad(vector, (0, size - vector.size)), split(mesh))


def largest_axis(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Split the longest axis that divides; an array that has none stays whole on every device."""
    lengths = [length if length % num_shares(mesh) == 0 else 0 for length in shape]
    return split(mesh, int(np.argmax(lengths))) if any(lengths) else whole(mesh)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shares:
    """All examples, dealt out to the devices of a mesh; each counts once in the sum over devices.

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
    """Deal all examples out to a mesh, or group them on the one device."""
    return group_batches(batches) if mesh is None else share_out(batches, mesh)


def share_out(batches: Any, mesh: Mesh) -> Shares:
    """Deal the examples of all batches out, in batches of the same size over the whole mesh.

    Batches of examples of one kind are one pool, however they were cut. A loss that is a mean over
    examples is the same for any cut.
    """
    n, size = num_shares(mesh), max(1, leading_size(first_batch(batches)) // num_shares(mesh))
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
        place(tuple(own), split(mesh)),
        place(tuple(common), whole(mesh)),
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
    return shard_map(of_device, mesh, P())(common, examples.own)


def shard_map(function: Callable, mesh: Mesh, out_specs: Any, num_split: int = 1) -> Callable:
    """Run `function(common, *own)` on every device, `own` its part of what is split."""
    axis = P(mesh.axis_names[0])
    # The check would ask the loss of a user for types that only programs made for it have.
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(P(), *[axis] * num_split),
        out_specs=out_specs,
        check_vma=False,
    )


def _first(own: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], own)


@dataclass(frozen=True)
class SplitProduct:
    """The sum over a mesh's devices of the products of one whole vector with each one's operator.

    Called with vectors of `dim` entries or of the padded size; the latter, split over the mesh, are
    what algorithms on the mesh use, and then no device ever holds more than one whole vector.

    Attributes:
        mesh: the devices.
        dim: size of the vectors.
        term: `term(common, own, vector)`, one device's product, `own` without its first axis.
        dtype: type of the vectors; None takes any.
    """

    mesh: Mesh
    dim: int
    term: Callable
    dtype: Any = None

    def __call__(self, common: Any, own: Any, vector: Array) -> Array:
        """Multiply one vector; `own` has leaves [devices, ...], the first axis split."""
        size = padded_size(self.dim, self.mesh)
        if getattr(vector, "shape", None) not in ((self.dim,), (size,)):
            raise ValueError(
                f"vector must have shape ({self.dim},), or ({size},) padded for the mesh, "
                f"got {getattr(vector, 'shape', vector)}"
            )
        check_same_dtype(jnp.result_type(vector), self.dtype)
        with on(self.mesh):
            product = _multiply(self, common, own, split_vector(vector, self.mesh))
            if vector.size == size:
                return product
            return place(product, whole(self.mesh))[: self.dim]

    def restrict(self, restricted: Any, index: Array, common: Any, own: Any) -> Partial:
        """Return the operator on the entries at `index`: no further communication."""
        term = _RestrictedTerm(restricted, self.term)
        operator = SplitProduct(self.mesh, index.size, term, self.dtype)
        return Partial(operator, (place(index, whole(self.mesh)), common), own)


@dataclass(frozen=True)
class _RestrictedTerm:
    restricted: Callable
    term: Callable

    def __call__(self, common: Any, own: Any, vector: Array) -> Array:
        index, common = common
        return self.restricted(partial(self.term, common, own), index, vector)


@partial(jax.jit, static_argnums=0)
def _multiply(operator: SplitProduct, common: Any, own: Any, vector: Array) -> Array:
    axis, dim = operator.mesh.axis_names[0], operator.dim

    def of_device(common: Any, own: Any, piece: Array) -> Array:
        gathered = jax.lax.all_gather(piece, axis, tiled=True)[:dim]
        product = operator.term(common, _first(own), gathered).astype(piece.dtype)
        product = jnp.pad(product, (0, vector.size - dim))
        return jax.lax.psum_scatter(product, axis, tiled=True)

    return shard_map(of_device, operator.mesh, P(axis), 2)(common, own, vector)


def pad_operator(matvec: Any, dim: int, size: int) -> Any:
    """Make an operator on [dim] one on [size] that is zero on the rest."""
    if dim == size:
        return matvec
    if isinstance(matvec, HostMatvec):
        return HostMatvec(partial(_Padded(dim), matvec), size, matvec.dtype)
    if isinstance(matvec.func, SplitProduct):
        return matvec
    return Partial(_Padded(dim), matvec)


@dataclass(frozen=True)
class _Padded:
    dim: int

    def __call__(self, matvec: Callable, vector: Array) -> Array:
        return jnp.pad(matvec(vector[: self.dim]), (0, vector.size - self.dim))
