"""Weights under study: which leaves of a parameter pytree count, and their flat vector."""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from jaxlimit._core.checks import check_floating_tree

Where = Callable[[str, Any], bool]

_NORM = re.compile(r"norm|(^|_)bn(\d|_|$)")


def is_weight(name: str, leaf: Any) -> bool:
    """Select every kernel and bias: all leaves but the scale and shift of normalisation layers.

    Names tell them, in either case: a leaf is left out if its name, or that of the layer that holds
    it, contains `norm` or the word `bn`, as do `BatchNorm_0`, `LayerNorm_1`, `norm1`, `bn_init` and
    `conv_bn`. Blocks further up do not count, so that `ConvNorm_0/Conv_0/kernel` is a weight. A
    place in a list, as in `norms/0/scale`, and the `value` that ends a path of NNX are passed over.

    Args:
        name: the leaf's path, such as `Dense_0/kernel`.
        leaf: the array itself.

    >>> is_weight("Dense_0/kernel", None), is_weight("BatchNorm_0/bias", None)
    (True, False)
    """
    path = name.lower().removesuffix("/value").split("/")
    layer_and_leaf = [part for part in path if not part.isdigit()][-2:]
    return not any(map(_NORM.search, layer_and_leaf))


def every_leaf(name: str, leaf: Any) -> bool:
    """Select all leaves, the scale and shift of normalisation layers among them.

    >>> every_leaf("BatchNorm_0/bias", None)
    True
    """
    del name, leaf
    return True


def selected(params: Any, where: Where) -> list[bool]:
    """Return for each leaf of `params` whether `where` selects it."""
    return [
        bool(where(jax.tree_util.keystr(path, simple=True, separator="/"), leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ]


@dataclass(frozen=True)
class _Unflatten:
    """Put a flat vector back in its pytree, the leaves not under study as they were."""

    treedef: Any
    shapes: tuple[tuple[int, ...] | None, ...]
    dtypes: tuple[Any, ...]

    def __call__(self, frozen: list, vector: Float[Array, "D"]) -> Any:
        sizes = [math.prod(shape) for shape in self.shapes if shape is not None]
        # One split, whose transpose is one concatenation, not a sum of padded slices.
        parts = iter(jnp.split(vector, list(itertools.accumulate(sizes[:-1]))))
        rest = iter(frozen)
        leaves = [
            next(rest) if shape is None else next(parts).reshape(shape).astype(dtype)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, leaves)


def flatten_weights(params: Any, where: Where = is_weight) -> tuple[Float[Array, "D"], Partial]:
    """Flatten the weights under study to one vector, and return the way back.

    Args:
        params: pytree of arrays, real floating where they are under study.
        where: `where(name, leaf)` says whether a leaf is under study.

    Returns:
        The vector [D], and a `Partial` that maps such a vector to a pytree like `params`; it
        carries the leaves not under study as operands.

    Raises:
        TypeError: if a leaf is no real array, or is under study and not floating.
        ValueError: if a leaf is not finite, or nothing is selected.

    >>> import jax.numpy as jnp
    >>> vector, unflatten = flatten_weights({"bias": jnp.ones(2), "kernel": jnp.zeros((2, 2))})
    >>> unflatten(vector + 1)["bias"]
    Array([2., 2.], dtype=float32)
    """
    chosen = selected(params, where)
    check_floating_tree("params", params, chosen)
    params = jax.tree.map(jnp.asarray, params)
    leaves, treedef = jax.tree.flatten(params)
    studied = [leaf for leaf, keep in zip(leaves, chosen, strict=True) if keep]
    if not any(leaf.size for leaf in studied):
        raise ValueError(f"where must select at least one weight, it selects none of {treedef}")
    shapes = tuple(leaf.shape if keep else None for leaf, keep in zip(leaves, chosen, strict=True))
    frozen = [leaf for leaf, keep in zip(leaves, chosen, strict=True) if not keep]
    unflatten = _Unflatten(treedef, shapes, tuple(leaf.dtype for leaf in leaves))
    dtype = jnp.result_type(*studied)
    vector = jnp.concatenate([leaf.astype(dtype).ravel() for leaf in studied])
    return vector, Partial(unflatten, frozen)
