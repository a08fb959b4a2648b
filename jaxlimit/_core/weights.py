"""Weights under study: which leaves of a parameter pytree count, and their flat vector."""

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core.checks import as_array, check_floating_tree, check_real, is_concrete, is_finite
from jaxlimit._core.scale import wide_type
from jaxlimit._core.sharding import auto

Where = Callable[[str, Any], bool]

_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_SHORT_NORMS = frozenset({"bn", "ln", "gn", "rms"})
_NORMS = _SHORT_NORMS | frozenset(
    {"norm", "norms", "batchnorm", "layernorm", "groupnorm", "instancenorm", "rmsnorm"}
    | {"normalization", "normalisation"}
)
# Layers with a kernel, whose bias is a weight though norm stands before it, as in `norm_mlp`.
_LAYERS = frozenset({"mlp", "dense", "linear", "conv", "projection", "fc", "ffn", "attention"})
_SCALES = frozenset(["scale", "gamma", "gain", "beta", "offset", "shift"])
_KERNELS = frozenset(["kernel", "kernels", "embedding", "embeddings"])


def is_weight(name: str, leaf: Any) -> bool:
    """Select every kernel and bias: all leaves but the scale and shift of normalisation layers.

    The decision is by whole words of the name, which `_`, digits and capitals separate. A leaf is
    left out if

    - its own name or that of its layer has a word for normalisation (norm, bn, ln, gn, rms,
      batchnorm, layernorm, normalization and similar), such as `BatchNorm_0`, `ln_f`, `gn_root`,
      `query_ln` and `conv_bn1`, but not `abnormal`; and
    - it is no `kernel` or `embedding`, and has at most one axis or is called scale, gamma, gain,
      beta, offset, shift or bias; and
    - it is not the bias of a layer with a kernel, such as `norm_mlp`.

    Blocks further up do not count: `ConvNorm_0/Conv_0/bias` is a weight. An index in a list, as in
    `norms/0/scale`, and the `value` at the end of an NNX path are ignored.

    Args:
        name: path of the leaf, such as `Dense_0/kernel`, with its parts joined by `/` or dots.
        leaf: the array itself; None if only the name is known.

    Returns:
        True if the leaf is a weight under study.

    >>> is_weight("Dense_0/kernel", None), is_weight("BatchNorm_0/bias", None)
    (True, False)
    """
    layer, own = _layer_and_leaf(name)
    if not _NORMS & {*layer, *own} or _KERNELS & {*own}:
        return True
    if _SCALES & {*own}:
        return False
    if layer and layer[-1] in _LAYERS and not _SHORT_NORMS & {*layer}:
        return True
    return "bias" not in own and jnp.ndim(0 if leaf is None else leaf) > 1


def _looks_like_scale(name: str, leaf: Any) -> bool:
    layer, own = _layer_and_leaf(name)
    in_norm = bool(_NORMS & {*layer, *own})
    return not _KERNELS & {*own} and (in_norm or (bool(_SCALES & {*own}) and jnp.ndim(leaf) <= 1))


def _layer_and_leaf(name: str) -> tuple[list[str], list[str]]:
    """Return the words of the layer that holds a leaf, and those of the leaf's own name."""
    path = name.removesuffix("/value").replace(".", "/").split("/")
    parts = [_words(part) for part in path if not part.isdigit()]
    return (parts[-2] if len(parts) > 1 else []), (parts[-1] if parts else [])


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def describe_selection(params: Any, where: Where = is_weight) -> str:
    """Say in one line which leaves are left out, and which look like a scale but are included.

    >>> import jax.numpy as jnp
    >>> describe_selection({"ln_1": {"scale": jnp.ones(2)}, "fc": {"kernel": jnp.ones((2, 2))}})
    '4 of 6 parameters are under study; left out: ln_1/scale (2)'
    """
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    sizes = [math.prod(jnp.shape(leaf)) for _, leaf in paths]
    chosen = selected(params, where)
    left_out = [i for i, keep in enumerate(chosen) if not keep]
    like_scales = [
        i for i, keep in enumerate(chosen) if keep and _looks_like_scale(names[i], paths[i][1])
    ]

    def listed(indices):
        shown = ", ".join(names[i] for i in indices[:3])
        more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
        return f"{shown}{more} ({sum(sizes[i] for i in indices):,})"

    studied = sum(size for size, keep in zip(sizes, chosen, strict=True) if keep)
    text = f"{studied:,} of {sum(sizes):,} parameters are under study"
    if left_out:
        text += f"; left out: {listed(left_out)}"
    if like_scales:
        text += f"; kept though named like a scale: {listed(like_scales)}"
    return text


def every_leaf(name: str, leaf: Any) -> bool:
    """Select all leaves, including the scale and shift of normalisation layers.

    Args:
        name: path of the leaf.
        leaf: the array itself.

    Returns:
        True.

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


def flat_vectors(**vectors: Any) -> list[Float[Array, "D"]]:
    """Return vectors of one size as arrays of float32 at least; errors use their keywords as names.

    Raises:
        TypeError: if one is no array of real numbers.
        ValueError: if one is not flat, empty, of another size than the last, or known to be not
            finite.

    >>> flat_vectors(gradient=jnp.ones(2), weights=jnp.ones(3))
    Traceback (most recent call last):
    ValueError: gradient must be flat, [D], like weights, (3,), got (2,)
    """
    last, like = list(vectors.items())[-1]
    found = []
    for name, vector in vectors.items():
        check_real(name, vector)
        shape = jnp.shape(vector)
        if len(shape) != 1 or shape != jnp.shape(like) or not shape[0]:
            of_last = "" if name == last else f" like {last}, {jnp.shape(like)},"
            raise ValueError(f"{name} must be flat, [D],{of_last} got {shape}")
        if not is_finite(vector):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        found.append(jnp.asarray(vector, wide_type(jnp.result_type(vector))))
    return found


def check_kept(name: str, kept: Any, dim: int) -> Bool[Array, "D"]:
    """Return a flat mask as an array, or raise unless it is boolean and of `dim` entries."""
    marks = np.asarray(kept) if is_concrete(kept) else kept
    if marks.dtype != bool:
        raise TypeError(f"{name} must be boolean, True where a weight is kept, got {marks.dtype}")
    if marks.shape != (dim,):
        raise ValueError(f"{name} must be flat, [{dim}] like weights, got {marks.shape}")
    return jnp.asarray(marks)


def check_places(name: str, places: Any, dim: int) -> Int[Array, "D"]:
    """Return places in an order, or raise if they are known not to be 0 to `dim` - 1 once each.

    Raises:
        TypeError: if they are no integers.
        ValueError: if they are no permutation.
    """
    places = as_array(name, places)
    if not jnp.issubdtype(places.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {places.dtype}")
    is_shaped = places.shape == (dim,)
    if not is_shaped or (
        is_concrete(places) and not np.array_equal(np.sort(np.asarray(places)), np.arange(dim))
    ):
        raise ValueError(f"{name} must have the places 0 to {dim - 1} once each, [{dim}]")
    return places


@dataclass(frozen=True)
class _Unflatten:
    """Put a flat vector back into its pytree, with the other leaves unchanged."""

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


@auto
def flatten_weights(
    params: Any, where: Where = is_weight, *, name: str = "params"
) -> tuple[Float[Array, "D"], Partial]:
    """Flatten the weights under study into one vector, and return the inverse function.

    The vector is float32 at least; the inverse gives every leaf its own type.

    Args:
        params: pytree of arrays, real floating where they are under study.
        where: `where(name, leaf)` says whether a leaf is under study.
        name: name of `params` in errors.

    Returns:
        The vector [D], and a `Partial` that maps such a vector to a pytree like `params`, with the
        leaves not under study as operands.

    Raises:
        TypeError: if a leaf is no real array, or is under study and not floating.
        ValueError: if a leaf is not finite, or nothing is selected.

    >>> import jax.numpy as jnp
    >>> vector, unflatten = flatten_weights({"bias": jnp.ones(2), "kernel": jnp.zeros((2, 2))})
    >>> unflatten(vector + 1)["bias"]
    Array([2., 2.], dtype=float32)
    """
    chosen = selected(params, where)
    check_floating_tree(name, params, chosen)
    params = jax.tree.map(jnp.asarray, params)
    leaves, treedef = jax.tree.flatten(params)
    studied = [leaf for leaf, keep in zip(leaves, chosen, strict=True) if keep]
    if not any(leaf.size for leaf in studied):
        raise ValueError(f"where must select at least one weight, it selects none of {treedef}")
    shapes = tuple(leaf.shape if keep else None for leaf, keep in zip(leaves, chosen, strict=True))
    frozen = [leaf for leaf, keep in zip(leaves, chosen, strict=True) if not keep]
    unflatten = _Unflatten(treedef, shapes, tuple(leaf.dtype for leaf in leaves))
    dtype = wide_type(jnp.result_type(*studied))
    vector = jnp.concatenate([leaf.astype(dtype).ravel() for leaf in studied])
    return vector, Partial(unflatten, frozen)
