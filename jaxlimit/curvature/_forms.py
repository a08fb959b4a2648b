"""The two forms of an operator, recomputed and linearised, on one device and on a mesh."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.tree_util import Partial
from jaxtyping import Array

from jaxlimit._core import sharding, shares
from jaxlimit._core.batches import mean_over
from jaxlimit._core.mesh_product import MeshProduct
from jaxlimit._core.operator import Operator, Product
from jaxlimit._core.programs import (
    canonical_linear,
    check_forward_mode,
    narrow_products,
    precise_products,
)


@dataclass(frozen=True)
class Recomputed:
    """The form that recomputes the primal pass in each product, batch by batch."""

    kind: Any

    def __call__(self, unflatten, weights, groups, operands, vector):
        """Multiply one vector by the derivative of the mean gradient over `groups`."""

        def of_batch(batch):
            stack = jax.tree.map(lambda leaf: leaf[None], batch)
            gradient = self.kind.gradient_map(unflatten, weights, stack, operands)
            return self.kind.derivative(gradient, weights, vector)

        with precise_products():
            return mean_over(groups, of_batch)


@partial(jax.jit, static_argnums=(0, 1))
def _linearize(kind, product_dtype, unflatten, weights, groups, operands) -> Any:
    def mean_gradient(vector):
        return sum(
            group.share * kind.gradient_map(unflatten, weights, group.batches, operands)(vector)
            for group in groups
        )

    with precise_products():
        linear = kind.linearize(mean_gradient, weights)
    if product_dtype is not None:
        linear = narrow_products(linear, weights, product_dtype)
    return canonical_linear(linear, weights)


@jax.jit
def _apply(matvec: Partial, vector: Array) -> Array:
    with precise_products():
        return matvec(vector)


def _num_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _call(function: Callable, vector: Array) -> Array:
    return function(vector)


@dataclass(frozen=True)
class OneDevice:
    """The forms without a mesh; `args` are unflatten, weights, groups and operands."""

    kind: Any
    args: tuple

    def num_bytes(self, product_dtype: Any = None) -> int:
        """Return what the linearised form holds."""
        return _num_bytes(jax.eval_shape(partial(_linearize, self.kind, product_dtype), *self.args))

    def linearized(self, product_dtype: Any) -> Operator:
        """Linearise now."""
        linear = _linearize(self.kind, product_dtype, *self.args)
        return self._operator(linear, linearized=True)

    def recomputed(self) -> Operator:
        """Linearise anew in each product."""
        return self._operator(Partial(Recomputed(self.kind), *self.args), linearized=False)

    def check(self, linearized: bool) -> None:
        """Raise unless the functions have the rules for this form; nothing runs."""
        weights = self.args[1]
        if linearized:
            linear = jax.eval_shape(partial(_linearize, self.kind, None), *self.args)
            check_forward_mode(_call, linear, weights)
        else:
            check_forward_mode(Recomputed(self.kind), *self.args, weights)

    def _operator(self, matvec: Partial, *, linearized: bool) -> Operator:
        weights = self.args[1]
        product = Product(Partial(_apply, matvec), weights.size)
        return Operator(product, weights.size, weights.dtype, linearized=linearized)


class _Common(NamedTuple):
    """What all devices have; `weights` are empty if they are sharded."""

    unflatten: Partial
    weights: Array | None
    operands: tuple
    shares: tuple[float, ...]
    batches: tuple


class _Own(NamedTuple):
    """What each device has for itself, with leaves [devices, ...]."""

    piece: Array | None
    batches: tuple


@dataclass(frozen=True)
class _OnMesh:
    """The forms whose examples, and weights if sharded, a mesh shares."""

    kind: Any
    mesh: Mesh
    dim: int
    dtype: Any
    common: _Common
    own: _Own

    def num_bytes(self, product_dtype: Any = None) -> int:
        """Return what the linearised form holds on each device."""
        linearize = partial(_linearize_on, self.mesh, self._term, product_dtype)
        stored = jax.eval_shape(linearize, self.common, self.own)
        return _num_bytes(stored) // sharding.num_shards(self.mesh)

    def linearized(self, product_dtype: Any) -> Operator:
        """Linearise now, each device its own examples."""
        linear = _linearize_on(self.mesh, self._term, product_dtype, self.common, self.own)
        return self._operator((), linear, _apply_own, linearized=True)

    def recomputed(self) -> Operator:
        """Linearise anew in each product."""
        return self._operator(self.common, self.own, self._term, linearized=False)

    def _operator(self, common: Any, own: Any, term: Callable, *, linearized: bool) -> Operator:
        product = MeshProduct(common, own, term, self.dim, self.mesh)
        return Operator(product, self.dim, self.dtype, self.mesh, linearized=linearized)

    def check(self, linearized: bool) -> None:
        """Raise unless the functions have the rules for this form; nothing runs."""
        vector = jax.ShapeDtypeStruct((sharding.padded_size(self.dim, self.mesh),), self.dtype)
        if linearized:
            linearize = partial(_linearize_on, self.mesh, self._term, None)
            linear = jax.eval_shape(linearize, self.common, self.own)
            operator = self._operator((), linear, _apply_own, linearized=True)
        else:
            operator = self.recomputed()
        check_forward_mode(_call, operator, vector)

    @property
    def _term(self) -> "_Term":
        return _Term(self.kind, self.mesh.axis_names[0], self.dim)


def lay_out(
    kind: Any,
    mesh: Mesh,
    unflatten: Partial,
    weights: Array,
    batches: Any,
    operands: tuple,
    sharded: bool,
) -> _OnMesh:
    """Lay out the parts of an operator over a mesh."""
    dealt = shares.share_out(batches, mesh)
    whole, piece = weights, None
    if sharded:
        pieces = sharding.shard_vector(weights, mesh).reshape(sharding.num_shards(mesh), -1)
        whole, piece = None, sharding.place(pieces, sharding.sharded(mesh))
    common = _Common(unflatten, whole, operands, dealt.weights, dealt.common)
    common = sharding.replicate(common, mesh)
    own = _Own(piece, dealt.own)
    return _OnMesh(kind, mesh, weights.size, weights.dtype, common, own)


@dataclass(frozen=True)
class _Term:
    """One device's part of the sum."""

    kind: Any
    axis: str
    dim: int

    def args(self, common: _Common, own: _Own) -> tuple[Partial, Array, tuple, tuple]:
        """Return the arguments of the forms on this device, `own` without its first axis."""
        weights = common.weights
        if weights is None:
            weights = jax.lax.all_gather(own.piece, self.axis, tiled=True)[: self.dim]
        groups = shares.groups_of_device(common.shares, own.batches, common.batches)
        return common.unflatten, weights, groups, common.operands

    def __call__(self, common: _Common, own: _Own, vector: Array) -> Array:
        return Recomputed(self.kind)(*self.args(common, own), vector)


def _apply_own(common: tuple, own: Callable, vector: Array) -> Array:
    del common
    return own(vector)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _linearize_on(mesh: Mesh, term: _Term, product_dtype: Any, common: _Common, own: _Own) -> Any:
    def of_device(common, own):
        own = jax.tree.map(lambda leaf: leaf[0], own)
        linear = _linearize(term.kind, product_dtype, *term.args(common, own))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], linear)

    return sharding.shard_map(of_device, mesh, jax.sharding.PartitionSpec(term.axis))(common, own)
