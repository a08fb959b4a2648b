"""The product with an operator whose examples a mesh shares.

Each device multiplies the whole of a vector with the operator of its own examples, and the sum over
devices comes back sharded: one all-gather before and one reduce-scatter after each product.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from jaxlimit._core import sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class MeshProduct:
    """The sum over a mesh's devices of the products of one whole vector with each one's operator.

    Called with vectors of `dim` entries or of the padded size; the latter, sharded over the mesh,
    are what algorithms on the mesh use, and then no device ever holds more than one whole vector.

    Attributes:
        common: what all devices have.
        own: what each device has for itself, leaves [devices, ...], the first axis sharded.
        term: `term(common, own, vector)`, one device's product, `own` without its first axis.
        dim: size of the vectors.
        mesh: the devices.
    """

    common: Any
    own: Any
    term: Callable = field(metadata={"static": True})
    dim: int = field(metadata={"static": True})
    mesh: Mesh = field(metadata={"static": True})

    def __call__(self, vector: Array) -> Array:
        """Multiply one vector."""
        with sharding.on(self.mesh):
            product = _multiply(self, sharding.shard_vector(vector, self.mesh))
            if vector.size == product.size:
                return product
            return sharding.place(product, sharding.replicated(self.mesh))[: self.dim]

    def restrict(self, index: Int[Array, "k"]) -> "MeshProduct":
        """Return the operator on the entries at `index`: no further communication."""
        index = sharding.place(index, sharding.replicated(self.mesh))
        term = _RestrictedTerm(self.term, self.dim)
        return MeshProduct((index, self.common), self.own, term, index.size, self.mesh)


@dataclass(frozen=True)
class _RestrictedTerm:
    term: Callable
    dim: int

    def __call__(self, common: Any, own: Any, vector: Array) -> Array:
        index, common = common
        return self.term(common, own, embed(self.dim, index, vector))[index]


def embed(dim: int, index: Int[Array, "k"], vector: Array) -> Array:
    """Put the entries of a vector at `index` among zeros."""
    return jnp.zeros(dim, vector.dtype).at[index].set(vector, unique_indices=True)


@jax.jit
def _multiply(split: MeshProduct, vector: Array) -> Array:
    axis, dim = split.mesh.axis_names[0], split.dim

    def of_device(common: Any, own: Any, piece: Array) -> Array:
        gathered = jax.lax.all_gather(piece, axis, tiled=True)[:dim]
        own = jax.tree.map(lambda leaf: leaf[0], own)
        product = split.term(common, own, gathered).astype(piece.dtype)
        product = jnp.pad(product, (0, vector.size - dim))
        return jax.lax.psum_scatter(product, axis, tiled=True)

    mapped = sharding.shard_map(of_device, split.mesh, P(axis), 2)
    return mapped(split.common, split.own, vector)
