"""The mechanism behind every operator: differentiate a gradient map, once or for each product."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool

from jaxlimit._batches import check_like, group_batches, leading_size, mean_over
from jaxlimit._checks import check_choice, check_range
from jaxlimit._host import HostMatvec, check_vector
from jaxlimit._products import narrow_products
from jaxlimit._weights import Where, flatten_weights, is_weight, selected

Matvec = Callable[[Array], Array]

MATVEC_MODES = ("auto", "linearized", "forward-over-reverse")


class MatvecSettings(TypedDict, total=False):
    """Keyword settings that all operators of this module share.

    Attributes:
        mask: which of the selected weights are under study, True = studied: a pytree like
            `params` or a flat array [D], boolean and concrete. Vectors then have sum(mask) entries.
        where: `where(name, leaf)` selects the leaves under study, the others are constants.
            Default: everything but BatchNorm's scale and shift (`is_weight`); `every_leaf` takes
            those in.
        mode: "linearized" keeps what the linear part needs of the primal pass, over all examples
            at once, and never computes it again; "forward-over-reverse" recomputes it for each
            product, batch by batch; "auto" (default) linearises where that takes at most
            `memory_budget`.
        memory_budget: bytes that a linearisation may hold (default 4 GiB).
        product_dtype: None, or a narrower type such as `jnp.bfloat16` for the operands of the
            linear part's matrix products, which still accumulate in the type of `params`; the
            primal pass stays as it is. Implies the linearised mode.
    """

    mask: Any
    where: Where
    mode: str
    memory_budget: float
    product_dtype: Any


def make_operator(
    kind: Any,
    params: Any,
    batches: Any,
    operands: tuple,
    *,
    mask: Any = None,
    where: Where = is_weight,
    mode: str = "auto",
    memory_budget: float = 4 * 2**30,
    product_dtype: Any = None,
) -> Partial:
    """Make the product with the derivative of a gradient map; see `MatvecSettings`."""
    check_choice("mode", mode, MATVEC_MODES)
    check_range("memory_budget", float(memory_budget), 0)
    weights, unflatten = flatten_weights(params, where)
    if product_dtype is not None:
        _check_product_dtype(product_dtype, weights.dtype, mode)
        mode = "linearized"
    operator_args = (unflatten, weights, group_batches(batches), operands)
    if mode == "auto":
        size = linearization_size(kind, None, *operator_args)
        mode = "linearized" if size <= memory_budget else "forward-over-reverse"
    if mode == "forward-over-reverse":
        matvec = Partial(_Recomputed(kind), *operator_args)
    else:
        matvec = _linearize(kind, product_dtype, *operator_args)
    matvec = Partial(_Compiled(weights.size), matvec)
    return matvec if mask is None else restrict(matvec, _flat_mask(mask, params, where))


def _check_product_dtype(product_dtype: Any, dtype: Any, mode: str) -> None:
    if mode == "forward-over-reverse":
        raise ValueError(f"product_dtype needs mode 'linearized' or 'auto', got {mode!r}")
    narrow = jnp.dtype(product_dtype)
    if not jnp.issubdtype(narrow, jnp.floating) or narrow.itemsize >= dtype.itemsize:
        raise TypeError(f"product_dtype must be floating and narrower than {dtype}, got {narrow}")


@dataclass(frozen=True)
class _Recomputed:
    """One product, the primal pass recomputed, batch by batch."""

    kind: Any

    def __call__(self, unflatten, weights, groups, operands, vector):
        def of_batch(batch):
            stack = jax.tree.map(lambda leaf: leaf[None], batch)
            gradient = self.kind.gradient_map(unflatten, weights, stack, operands)
            return jax.jvp(gradient, (weights,), (vector,))[1]

        return mean_over(groups, of_batch)


@partial(jax.jit, static_argnums=(0, 1))
def _linearize(kind, product_dtype, unflatten, weights, groups, operands) -> Any:
    def mean_gradient(vector):
        return sum(
            group.share * kind.gradient_map(unflatten, weights, group.batches, operands)(vector)
            for group in groups
        )

    _, linear = jax.linearize(mean_gradient, weights)
    return linear if product_dtype is None else narrow_products(linear, weights, product_dtype)


def linearization_size(kind: Any, product_dtype: Any, *operator_args: Any) -> int:
    """Count the bytes that a linearisation keeps, by its shapes alone."""
    stored = jax.eval_shape(partial(_linearize, kind, product_dtype), *operator_args)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored))


@dataclass(frozen=True)
class _Compiled:
    """Apply an operator on [dim] as one compiled program."""

    dim: int

    def __call__(self, matvec: Partial, vector: Array) -> Array:
        check_vector(vector, self.dim)
        return _apply(matvec, vector)


@jax.jit
def _apply(matvec: Partial, vector: Array) -> Array:
    return matvec(vector)


def make_host_operator(
    kind: Any,
    params: Any,
    make_iterator: Callable[[], Iterable],
    operands: tuple,
    *,
    mask: Any = None,
    where: Where = is_weight,
) -> HostMatvec:
    """Make the product that reads its batches anew each time; see `hessian_matvec_over`."""
    weights, unflatten = flatten_weights(params, where)

    def product(vector):
        total, num_examples = jnp.zeros_like(vector), 0
        for batch in make_iterator():
            total = _add_product(kind, unflatten, weights, batch, operands, vector, total)
            num_examples += leading_size(batch)
        if not num_examples:
            raise ValueError(
                "make_iterator must return a fresh iterator over the batches each time it is "
                "called, got one without any"
            )
        return total / num_examples

    matvec = HostMatvec(product, weights.size)
    return matvec if mask is None else restrict(matvec, _flat_mask(mask, params, where))


@partial(jax.jit, static_argnums=0)
def _add_product(kind, unflatten, weights, batch, operands, vector, total):
    product = _Recomputed(kind)(unflatten, weights, group_batches([batch]), operands, vector)
    return total + leading_size(batch) * product


def restrict(matvec: Matvec, mask: Bool[Array | np.ndarray, "D"]) -> Any:
    """Restrict an operator to the principal submatrix on the entries where `mask` is True.

    H[S, S] v = Pᵀ H P v, P the embedding of S. Costs one product, a scatter and a gather.

    Args:
        matvec: the operator on [D].
        mask: True on S; concrete, since its count is the size of the vectors.

    Returns:
        A `Partial` from [sum(mask)] to [sum(mask)], or a `HostMatvec` if `matvec` is one.

    Raises:
        TypeError: if `mask` is not boolean.
        ValueError: if `mask` is not flat or selects nothing.

    >>> import jax.numpy as jnp
    >>> restrict(lambda v: jnp.arange(3.0) * v, jnp.array([False, True, True]))(jnp.ones(2))
    Array([1., 2.], dtype=float32)
    """
    chosen = _boolean(mask)
    if chosen.ndim != 1 or not chosen.any():
        raise ValueError(
            f"mask must be flat and select at least one entry, got shape {chosen.shape} "
            f"with {chosen.sum()} selected"
        )
    index = jnp.asarray(np.flatnonzero(chosen), jnp.int32)
    restricted = _Restricted(chosen.size)
    if isinstance(matvec, HostMatvec):
        return HostMatvec(partial(restricted, matvec, index), index.size)
    matvec = matvec if isinstance(matvec, Partial) else Partial(matvec)
    return Partial(_Compiled(index.size), Partial(restricted, matvec, index))


@dataclass(frozen=True)
class _Restricted:
    """Embed a vector in [dim], multiply, and take its entries out again."""

    dim: int

    def __call__(self, matvec: Matvec, index: Array, vector: Array) -> Array:
        embedded = jnp.zeros(self.dim, vector.dtype).at[index].set(vector, unique_indices=True)
        return matvec(embedded)[index]


def _boolean(mask: Any) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be boolean, True where a weight is studied, got {mask.dtype}")
    return mask


def _flat_mask(mask: Any, params: Any, where: Where) -> np.ndarray:
    if isinstance(mask, jax.Array | np.ndarray) and mask.ndim == 1:
        size = flatten_weights(params, where)[0].size
        if mask.size != size:
            raise ValueError(
                f"mask must have one entry for each of the {size} weights under study, "
                f"got {mask.size}"
            )
        return np.asarray(mask)
    check_like("mask", mask, params)
    leaves = zip(jax.tree.leaves(mask), selected(params, where), strict=True)
    return np.concatenate([_boolean(leaf).ravel() for leaf, studied in leaves if studied])
