"""Where arrays lie on a mesh of devices: sharded along one axis, replicated, or local to a process.

The first axis of a mesh shares the work. Vectors whose size its device count does not divide are
padded with zeros.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxlimit._core.checks import is_concrete

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
    """Let a function that has a keyword `mesh` meet axes of any type, and take it from its arrays.

    The types of arrays on Explicit axes name their sharding, which the programs here choose
    themselves: such arguments are moved to axes of type Auto, and the mesh of a caller's
    `jax.set_mesh` is set aside. Where `mesh` is not given it is that of the arguments, if one of
    them lies on several devices.
    """

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        given = kwargs.pop("mesh", None)
        given = common_mesh((args, kwargs)) if given is None else given
        if given is None:
            return function(*args, **kwargs)
        mesh = check_mesh(given)
        with on(mesh):
            moved, named = jax.tree.map(_to_auto, (args, kwargs))
            return cast(Callable, function)(*moved, **named, mesh=mesh)

    return wrapper


def common_mesh(tree: Any) -> Mesh | None:
    """Return the mesh of several devices that an array of a pytree lies on, if one does."""
    for leaf in jax.tree.leaves(tree):
        mesh = mesh_of(leaf)
        if mesh is not None and mesh.size > 1:
            return mesh
    return None


def auto(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Let a function of arrays, without a keyword `mesh`, take arrays on Explicit axes.

    A result that is a pytree like the first argument lies as that does.
    """

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        mesh = common_mesh((args, kwargs))
        if mesh is None:
            return function(*args, **kwargs)
        with on(check_mesh(mesh)):
            moved, named = jax.tree.map(_to_auto, (args, kwargs))
            result = cast(Callable, function)(*moved, **named)
        like = args[0] if args else None
        if jax.tree.structure(result) == jax.tree.structure(like):
            return jax.tree.map(_lay_like, result, like)
        return result

    return wrapper


def _lay_like(leaf: Any, like: Any) -> Any:
    same = is_concrete(leaf, like) and jnp.shape(leaf) == jnp.shape(like)
    return jax.device_put(leaf, like.sharding) if same and mesh_of(like) is not None else leaf


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


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the sharding that splits an array's `axis` over the first axis of the mesh."""
    return NamedSharding(mesh, P(*[None] * axis, mesh.axis_names[0]))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that gives every device all of an array."""
    return NamedSharding(mesh, P())


def num_shards(mesh: Mesh) -> int:
    """Return how many devices share the examples."""
    return mesh.shape[mesh.axis_names[0]]


def padded_size(dim: int, mesh: Mesh | None) -> int:
    """Return the next multiple of the number of shards."""
    return dim if mesh is None else dim + -dim % num_shards(mesh)


def shard_size(dim: int, mesh: Mesh | None) -> int:
    """Return how many entries of a vector each device has."""
    return dim if mesh is None else padded_size(dim, mesh) // num_shards(mesh)


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Lay arrays out over a mesh; each process holds them all, and keeps its devices' parts.

    Python numbers stay what they are, so they take on the precision of what they multiply.
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
    return tree if mesh is None else place(tree, replicated(mesh))


def local(tree: Any, mesh: Mesh | None) -> Any:
    """Return arrays that every process has all of, free to go with any others."""
    if mesh is None or not is_concrete(tree):
        return tree
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(replicate(leaf, mesh))), tree)


def zeros(shape: tuple[int, ...], dtype: Any, mesh: Mesh | None, *, on_host: bool = False) -> Array:
    """Make zeros, no device holding more than its part of the last axis, or its host for it."""
    if mesh is None:
        return jnp.zeros(shape, dtype)
    sharding = sharded(mesh, len(shape) - 1)
    if not on_host:
        return jnp.zeros(shape, dtype, device=sharding)
    # Made by a program, which allocates them there.
    sharding = sharding.with_memory_kind("pinned_host")
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()


def shard_vector(vector: Array, mesh: Mesh) -> Array:
    """Pad a vector with zeros to a size that divides, and split it."""
    size = padded_size(vector.size, mesh)
    return place(jnp.pad(vector, (0, size - vector.size)), sharded(mesh))


def largest_axis(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Split the longest axis that divides; an array that has none is replicated."""
    lengths = [length if length % num_shards(mesh) == 0 else 0 for length in shape]
    return sharded(mesh, int(np.argmax(lengths))) if any(lengths) else replicated(mesh)


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
