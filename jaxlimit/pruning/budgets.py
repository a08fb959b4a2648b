"""How many weights each layer keeps, by the rules in common use; compare `limits.by_layer`."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxlimit._core import magnitudes
from jaxlimit._core.checks import check_range
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected


def erdos_renyi_kernel(params: Any, ratio: float, *, where: Where = is_weight) -> dict[str, float]:
    """Divide a ratio among leaves by their shapes alone: the Erdős-Rényi-Kernel rule.

    A leaf of shape (n₁, …, n_d) keeps a share proportional to (n₁ + … + n_d)/(n₁ ⋯ n_d), at most
    1; what exceeds 1 goes to the others. Leaves of fewer than two axes are kept whole.

    Args:
        params: pytree of floating arrays.
        ratio: fraction of all weights under study to keep.
        where: which leaves are weights under study.

    Returns:
        For each leaf under study, by its path, the fraction kept; their mean weighted by size is
        `ratio`.

    Raises:
        ValueError: if `ratio` lies outside [0, 1], or is less than leaves of one axis need.

    >>> import jax.numpy as jnp
    >>> params = {"narrow": jnp.ones((10, 2)), "wide": jnp.ones((40, 10))}
    >>> {name: round(kept, 3) for name, kept in erdos_renyi_kernel(params, 0.1).items()}
    {'narrow': 0.406, 'wide': 0.085}

    Evci, Gale, Menick, Castro, Elsen (2020), section 3; Mocanu et al. (2018).
    """
    check_range("ratio", ratio, 0, 1)
    leaves = _studied(params, where)
    sizes = {name: int(np.prod(shape)) for name, shape in leaves.items()}
    whole = {name for name, shape in leaves.items() if len(shape) < 2}
    total = ratio * sum(sizes.values())
    needed = sum(sizes[name] for name in whole)
    if total < needed:
        raise ValueError(f"ratio must keep the {needed} weights in leaves of one axis, got {ratio}")
    while True:
        free = [name for name in leaves if name not in whole]
        left = total - sum(sizes[name] for name in whole)
        scale = left / max(sum(sum(leaves[name]) for name in free), 1)
        kept = {name: scale * sum(leaves[name]) / sizes[name] for name in free}
        full = {name for name, share in kept.items() if share > 1}
        if not full:
            return {name: kept.get(name, 1.0) for name in leaves}
        whole |= full


def mask_by_leaf(params: Any, ratios: Mapping[str, float], *, where: Where = is_weight) -> Any:
    """Keep the weights of greatest magnitude of each leaf, as many as its own ratio says.

    Args:
        params: pytree of floating arrays.
        ratios: for each leaf under study, by its path, the fraction kept, rounded to the nearest
            count.
        where: which leaves are weights under study.

    Returns:
        A pytree of Booleans like `params`, True in leaves not under study.

    Raises:
        ValueError: if `ratios` names other leaves than those under study, or a ratio lies outside
            [0, 1].

    >>> import jax.numpy as jnp
    >>> mask_by_leaf({"a": jnp.array([3.0, -5.0, 1.0])}, {"a": 0.34})
    {'a': Array([False,  True, False], dtype=bool)}
    """
    leaves = _studied(params, where)
    if set(leaves) != set(ratios):
        raise ValueError(f"ratios must name the leaves {sorted(leaves)}, got {sorted(ratios)}")
    for name, ratio in ratios.items():
        check_range(f"ratios[{name!r}]", ratio, 0, 1)

    def keep(path, leaf, studied):
        if not studied:
            return jnp.ones(jnp.shape(leaf), bool)
        flat = jnp.ravel(jnp.asarray(leaf))
        count = round(ratios[_name(path)] * flat.size)
        return (magnitudes.ranks(flat) < count).reshape(jnp.shape(leaf))

    treedef = jax.tree.structure(params)
    chosen = jax.tree.unflatten(treedef, selected(params, where))
    return jax.tree_util.tree_map_with_path(keep, params, chosen)


def lamp_scores(params: Any, *, where: Where = is_weight) -> Float[Array, "D"]:
    """Score weights by their share of the remaining squares of their leaf: LAMP.

    s_i = w_i²/Σ_j w_j², the sum over the weights j of the same leaf with |w_j| ≥ |w_i|. Keeping
    the k largest scores of the whole network gives each leaf its own ratio; the largest weight of
    every leaf has score 1. Costs one sort a leaf.

    Args:
        params: pytree of floating arrays.
        where: which leaves are weights under study.

    Returns:
        The scores, flat [D], float32 at least.

    >>> import jax.numpy as jnp
    >>> lamp_scores({"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.1])})
    Array([0.36, 1.  , 1.  ], dtype=float32)

    Lee, Park, Mo, Ahn, Shin (2021), equation 4.
    """
    flatten_weights(params, where)
    leaves = zip(jax.tree.leaves(params), selected(params, where), strict=True)
    scores = [_lamp(jnp.ravel(jnp.asarray(leaf))) for leaf, studied in leaves if studied]
    return jnp.concatenate(scores)


def order_by_counts(
    weights: Float[Array, "D"],
    layers: Mapping[str, Bool[np.ndarray, "D"]],
    counts: Sequence[Mapping[str, int]],
) -> Int[Array, "D"]:
    """Turn budgets by layer, from the sparsest to the densest, into one order of removal.

    Inside a layer magnitude decides. Between two budgets, layers lose weights in proportion. So
    `smallest_of_order` finds how far a rule of budgets can go, as for any score.

    Args:
        weights: w, flat.
        layers: for each layer, True on its weights; every weight belongs to one layer.
        counts: for each budget, how many weights each layer keeps.

    Returns:
        Places [D]: the mask that keeps k weights keeps the places below k.

    Raises:
        ValueError: if the layers do not cover every weight once, a budget has other layers, or a
            layer keeps fewer in a denser budget.

    >>> import numpy as np
    >>> halves = {"a": np.array([True, True, False]), "b": np.array([False, False, True])}
    >>> budgets = [{"a": 0, "b": 1}, {"a": 1, "b": 1}]
    >>> order_by_counts(np.array([1.0, -2.0, 0.1]), halves, budgets)
    Array([2, 1, 0], dtype=int32)
    """
    flat = np.asarray(weights)
    covered = sum(np.asarray(mask, int) for mask in layers.values())
    if np.shape(covered) != flat.shape or not np.all(covered == 1):
        raise ValueError(f"layers must cover each of the {flat.size} weights once")
    stage, within = np.zeros(flat.size), np.zeros(flat.size)
    for name, mask in layers.items():
        if any(set(budget) != set(layers) for budget in counts):
            raise ValueError(f"counts must name the layers {sorted(layers)} in every budget")
        kept = np.array([budget[name] for budget in counts])
        if np.any(np.diff(kept) < 0):
            raise ValueError(f"counts of {name!r} must not fall from sparse to dense, got {kept}")
        ranks = np.asarray(magnitudes.ranks(jnp.asarray(flat[mask])))
        # The first budget that keeps a weight, and its place among those that this budget adds.
        first = np.searchsorted(kept, ranks, side="right")
        ends = np.concatenate([[0], kept, [mask.sum()]])
        stage[mask] = first
        within[mask] = (ranks - ends[first] + 1) / np.maximum(ends[first + 1] - ends[first], 1)
    places = np.empty(flat.size, np.int32)
    places[np.lexsort((within, stage))] = np.arange(flat.size)
    return jnp.asarray(places)


@jax.jit
def _lamp(weights: Float[Array, "n"]) -> Float[Array, "n"]:
    wide = jnp.abs(weights).astype(jnp.promote_types(weights.dtype, jnp.float32))
    largest = jnp.max(wide)
    squares = (wide / jnp.where(largest > 0, largest, 1)) ** 2
    order = jnp.argsort(-wide, stable=True)
    sums = jnp.cumsum(squares[order])
    scores = squares[order] / jnp.where(sums > 0, sums, 1)
    return jnp.zeros_like(scores).at[order].set(scores, unique_indices=True)


def _studied(params: Any, where: Where) -> dict[str, tuple[int, ...]]:
    named = jax.tree_util.tree_leaves_with_path(params)
    chosen = selected(params, where)
    pairs = zip(named, chosen, strict=True)
    return {_name(path): jnp.shape(leaf) for (path, leaf), keep in pairs if keep}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
