"""How training lies on a mesh of devices."""

from dataclasses import dataclass

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jaxlimit._core import sharding


@dataclass(frozen=True)
class Layout:
    """Where the arrays of training are placed; without a mesh they stay where they are.

    Attributes:
        mesh: devices, the first axis of which shares every batch.
        sharded: whether parameters and momentum are split over them too.
    """

    mesh: Mesh | None
    sharded: bool

    def whole(self, tree: PyTree) -> PyTree:
        """Give every device all of it."""
        return sharding.replicate(tree, self.mesh)

    def examples(self, tree: PyTree) -> PyTree:
        """Split the first axis of every array."""
        return tree if self.mesh is None else sharding.place(tree, sharding.sharded(self.mesh))

    def params(self, tree: PyTree) -> PyTree:
        """Lay out parameters, or what is shaped like them."""
        mesh = self.mesh
        if mesh is None or not self.sharded:
            return self.whole(tree)
        return jax.tree.map(
            lambda leaf: sharding.place(leaf, sharding.largest_axis(leaf.shape, mesh)), tree
        )
