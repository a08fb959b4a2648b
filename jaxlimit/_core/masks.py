"""Masks of the weights under study: as pytrees, as flat vectors, and of each layer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxlimit._core.batches import check_like
from jaxlimit._core.weights import Where, is_weight, selected


def flat_mask(mask: Any, params: Any, where: Where = is_weight) -> Bool[np.ndarray, "D"]:
    """Return a mask as a flat vector of the weights under study.

    Args:
        mask: pytree of Booleans like `params`, or the flat vector itself; concrete.
        params: pytree of arrays.
        where: which leaves are under study.

    Returns:
        The mask [D], on the host.

    Raises:
        TypeError: if `mask` is not boolean.
        ValueError: if `mask` has another structure or another size.

    >>> import jax.numpy as jnp
    >>> params = {"norm": {"scale": jnp.ones(1)}, "out": {"kernel": jnp.ones((1, 2))}}
    >>> mask = {"norm": {"scale": jnp.array([True])}, "out": {"kernel": jnp.array([[True, False]])}}
    >>> flat_mask(mask, params)
    array([ True, False])
    """
    chosen = selected(params, where)
    if isinstance(mask, jax.Array | np.ndarray) and mask.ndim == 1:
        leaves = zip(jax.tree.leaves(params), chosen, strict=True)
        size = sum(int(np.size(leaf)) for leaf, studied in leaves if studied)
        if mask.size != size:
            raise ValueError(
                f"mask must have one entry for each of the {size} weights under study, "
                f"got {mask.size}"
            )
        return _boolean(mask)
    check_like("mask", mask, params)
    leaves = zip(jax.tree.leaves(mask), chosen, strict=True)
    return np.concatenate([_boolean(leaf).ravel() for leaf, studied in leaves if studied])


def _boolean(mask: Any) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be boolean, True where a weight is studied, got {mask.dtype}")
    return mask


def mask_tree(mask: Bool[Array | np.ndarray, "D"], params: Any, where: Where = is_weight) -> Any:
    """Shape a flat mask like the parameters; the inverse of `flat_mask`.

    Args:
        mask: flat [D].
        params: pytree of arrays.
        where: which leaves are under study.

    Returns:
        A pytree of Booleans like `params`, True where not under study.

    Raises:
        ValueError: if `mask` has another size.

    >>> import jax.numpy as jnp
    >>> params = {"norm": {"scale": jnp.ones(1)}, "out": {"kernel": jnp.ones((1, 2))}}
    >>> mask_tree(jnp.array([True, False]), params)["out"]["kernel"]
    Array([[ True, False]], dtype=bool)
    """
    leaves, treedef = jax.tree.flatten(params)
    chosen = selected(params, where)
    sizes = [int(np.size(leaf)) if on else 0 for leaf, on in zip(leaves, chosen, strict=True)]
    if np.shape(mask) != (sum(sizes),):
        raise ValueError(
            f"mask must be flat, [{sum(sizes)}], one entry for each weight under study, "
            f"got shape {np.shape(mask)}"
        )
    parts = jnp.split(jnp.asarray(mask, bool), list(np.cumsum(sizes[:-1])))
    marks = [
        part.reshape(np.shape(leaf)) if on else jnp.ones(np.shape(leaf), bool)
        for part, leaf, on in zip(parts, leaves, chosen, strict=True)
    ]
    return jax.tree.unflatten(treedef, marks)


def layer_masks(params: Any, where: Where = is_weight) -> dict[str, Bool[np.ndarray, "D"]]:
    """Mark the weights of each layer in the flat vector of all weights under study.

    The leaves of a layer are those with one parent: kernel and bias of `Dense_0` form the layer
    `Dense_0`. A leaf at the top of the tree is a layer of its own.

    Args:
        params: pytree of arrays.
        where: which leaves are under study.

    Returns:
        For each layer, in the order of the flat vector, a mask [D]; together they cover all D.

    >>> import jax.numpy as jnp
    >>> params = {"Dense_0": {"bias": jnp.ones(1), "kernel": jnp.ones((2, 1))}, "top": jnp.ones(1)}
    >>> {name: mask.astype(int).tolist() for name, mask in layer_masks(params).items()}
    {'Dense_0': [1, 1, 1, 0], 'top': [0, 0, 0, 1]}
    """
    leaves = _leaves_of_layers(params, where)
    layers = list(dict.fromkeys(name for name, _ in leaves))
    owner = np.repeat([layers.index(name) for name, _ in leaves], [size for _, size in leaves])
    return {name: owner == i for i, name in enumerate(layers)}


def layer_sizes(params: Any, where: Where = is_weight) -> dict[str, int]:
    """Count the weights of each layer of `layer_masks`, without masks as large as the network."""
    sizes: dict[str, int] = {}
    for name, size in _leaves_of_layers(params, where):
        sizes[name] = sizes.get(name, 0) + size
    return sizes


def _leaves_of_layers(params: Any, where: Where) -> list[tuple[str, int]]:
    """Return the layer and the size of each leaf under study."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if where(name, leaf):
            parts = name.removesuffix("/value").split("/")
            found.append(("/".join(parts[:-1]) or name, int(np.size(leaf))))
    return found


def kept_by_layer(
    mask: Any, params: Any, *, where: Where = is_weight
) -> dict[str, tuple[int, int]]:
    """Count what a mask keeps of each layer, and how many weights the layer has.

    Layers are those of `layer_masks`.

    Args:
        mask: pytree of Booleans like `params`, or flat [D], True = kept.
        params: pytree of arrays.
        where: which leaves are under study.

    Returns:
        The counts (kept, all) by the name of the layer.

    Raises:
        TypeError: as `flat_mask`.
        ValueError: as `flat_mask`.

    >>> import jax.numpy as jnp
    >>> params = {"Dense_0": {"bias": jnp.ones(1), "kernel": jnp.ones((2, 1))}}
    >>> kept_by_layer(jnp.array([False, True, True]), params)
    {'Dense_0': (2, 3)}
    """
    kept = flat_mask(mask, params, where)
    layers = layer_masks(params, where)
    return {name: (int(kept[layer].sum()), int(layer.sum())) for name, layer in layers.items()}
