"""The mechanism behind every operator: differentiate a gradient map, once or in each product."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from jaxlimit._core import sharding
from jaxlimit._core.batches import group_batches, leading_size
from jaxlimit._core.checks import (
    check_choice,
    check_floating_tree,
    check_keywords,
    check_range,
    is_concrete,
)
from jaxlimit._core.host import HostBatches
from jaxlimit._core.losses import WEIGHTED, weight_of
from jaxlimit._core.masks import flat_mask
from jaxlimit._core.operator import Operator
from jaxlimit._core.origin import Origin, digest_of, examples_digest, program_digest
from jaxlimit._core.weights import Where, flatten_weights, is_weight, selected
from jaxlimit.curvature._forms import OneDevice, Recomputed, lay_out

Matvec = Callable[[Array], Array]

MATVEC_MODES = ("auto", "linearized", "forward-over-reverse", "reverse-over-reverse")


class MatvecSettings(TypedDict, total=False):
    """Keyword settings that all operators share.

    Attributes:
        mask: which of the selected weights are under study, True = studied: a pytree like
            `params` or a flat array [D], boolean and concrete. Vectors then have sum(mask) entries.
        where: `where(name, leaf)` selects the leaves under study, the others are constants.
            Default: everything but the scale and shift of normalisation layers (`is_weight`);
            `every_leaf` includes those.
        mode: "linearized" computes the primal pass once, over all examples, and keeps what the
            linear part needs of it; "forward-over-reverse" recomputes it in each product, batch by
            batch; "reverse-over-reverse" does the same for losses with functions that have no
            forward mode (`jax.custom_vjp`); "auto" (default) linearises where that takes at most
            `memory_budget` and no batches stay on the host (`studies.HostBatches`), and uses
            reverse mode where forward mode fails.
        memory_budget: bytes that a linearisation may hold (default 4 GiB).
        product_dtype: None, or a narrower type such as `jnp.bfloat16` for the operands of the
            linear part's matrix products, which still accumulate in the type of `params`; the
            primal pass stays as it is. Implies the linearised mode. None multiplies in the full
            precision of `params`, on NVIDIA's devices without TF32, unless the caller has set
            `jax.default_matmul_precision`.
        mesh: devices to share the work, a `jax.sharding.Mesh`. Its first axis splits the examples,
            and the vectors along D (padded with zeros where it does not divide D); devices along
            the other axes repeat the same work. A product is an all-gather of its vector and a
            reduce-scatter of the sum over devices. `memory_budget` is then that of each device.
        shard_params: keep only a part of the weights under study on each device of `mesh`, and
            gather them for each product: one more all-gather, and no linearisation, which would
            keep them whole.
    """

    mask: Any
    where: Where
    mode: str
    memory_budget: float
    product_dtype: Any
    mesh: Mesh | None
    shard_params: bool


_DEFAULTS: dict[str, Any] = {
    "mask": None,
    "where": is_weight,
    "mode": "auto",
    "memory_budget": 4 * 2**30,
    "product_dtype": None,
    "mesh": None,
    "shard_params": False,
}


def make_operator(
    kind: Any, params: Any, batches: Any, operands: tuple, **settings: Unpack[MatvecSettings]
) -> Operator:
    """Make the operator of a gradient map's derivative; see `MatvecSettings`."""
    chosen: dict[str, Any] = {**_DEFAULTS, **settings}
    mask, where, mode, budget, product_dtype, mesh, shard_params = chosen.values()
    check_choice("mode", mode, MATVEC_MODES)
    check_range("memory_budget", float(budget), 0)
    weights, unflatten = flatten_weights(params, where)
    if product_dtype is not None:
        _check_product_dtype(product_dtype, weights.dtype, mode)
        mode = "linearized"
    if shard_params:
        mode = _mode_of_sharded(mode, mesh)
    on_host = isinstance(batches, HostBatches)
    if on_host and mode == "linearized":
        raise ValueError(
            "mode 'linearized' keeps something of all examples on the device, got batches that "
            "stay on the host: leave mode 'auto' and product_dtype None"
        )
    if mesh is None:
        form = OneDevice(kind, (unflatten, weights, group_batches(batches), operands))
    else:
        form = lay_out(kind, mesh, unflatten, weights, batches, operands, shard_params)
    form, num_bytes = differentiable(form, mode, product_dtype, on_host)
    if mode == "linearized" or (mode == "auto" and not on_host and num_bytes <= budget):
        operator = form.linearized(product_dtype)
    else:
        operator = form.recomputed()
    stacks = partial(_stacks, batches)
    operator = replace(operator, origin=_origin(kind, params, where, operands, stacks))
    return operator if mask is None else operator.restrict(flat_mask(mask, params, where))


def _stacks(batches: Any) -> Iterable:
    """Return all examples, as pytrees of leaves [examples, ...]."""
    if isinstance(batches, list):
        return batches
    return [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)]


def _origin(
    kind: Any, params: Any, where: Where, operands: tuple, stacks: Callable[[], Iterable]
) -> Origin | None:
    """Identify data, weights and loss of an operator, whatever the batches; None if not known."""
    if not is_concrete(params, operands, getattr(stacks, "args", ())):
        return None

    def gradient(weights, unflatten, stack, operands):
        return kind.gradient_map(unflatten, weights, stack, operands)(weights)

    def digests():
        first = next(iter(stacks()))
        one = jax.tree.map(lambda x: jnp.asarray(x[:1])[None], first)
        return {
            "data": examples_digest(stacks()),
            "params": digest_of(params),
            "operands": digest_of(kind.given(operands)),
        } | program_digest(gradient, *flatten_weights(params, where), one, operands)

    return Origin(digests)


def check_settings(function: str, settings: Any) -> None:
    """Raise unless all keyword settings are those of `MatvecSettings`; names the nearest."""
    check_keywords(function, settings, MatvecSettings.__annotations__)


def check_studied(params: Any, where: Where) -> None:
    """Raise unless `params` holds arrays, and floating ones where they are under study.

    To be called before the loss is traced, whose own error would come first.
    """
    check_floating_tree("params", params, selected(params, where))


_FORWARD = ({}, {"vectorize": False})
_REVERSE = ({"reverse": True}, {"reverse": True, "vectorize": False})
_WAYS = {
    "auto": _FORWARD + _REVERSE,
    "linearized": _FORWARD + _REVERSE,
    "forward-over-reverse": _FORWARD[:1],
    "reverse-over-reverse": _REVERSE[:1],
}


def differentiable(form: Any, mode: str, product_dtype: Any, on_host: bool) -> tuple[Any, int]:
    """Return the form in the first way of differentiating that its functions have rules for.

    Also returns the bytes of its linearisation where the mode allows one. Nothing runs.
    """
    errors = []
    for way in _WAYS[mode]:
        tried = replace(form, kind=replace(form.kind, **way))
        try:
            weighed = mode in ("auto", "linearized") and not on_host
            tried.check(linearized=weighed)
            return tried, tried.num_bytes(product_dtype) if weighed else 0
        except Exception as error:  # every missing rule raises an error of its own
            errors.append(error)
    if mode == "forward-over-reverse":
        raise TypeError(
            f"mode 'forward-over-reverse' cannot differentiate the loss: {errors[0]}; use "
            "'reverse-over-reverse' or 'auto', which need no forward mode"
        ) from errors[0]
    raise errors[0]


def _check_product_dtype(product_dtype: Any, dtype: Any, mode: str) -> None:
    if mode not in ("auto", "linearized"):
        raise ValueError(f"mode must be 'linearized' or 'auto' with a product_dtype, got {mode!r}")
    narrow = jnp.dtype(product_dtype)
    if not jnp.issubdtype(narrow, jnp.floating) or narrow.itemsize >= dtype.itemsize:
        raise TypeError(f"product_dtype must be floating and narrower than {dtype}, got {narrow}")


def _mode_of_sharded(mode: str, mesh: Mesh | None) -> str:
    if mesh is None:
        raise ValueError(
            "mesh must be given with shard_params, to spread the weights over; got None"
        )
    if mode == "reverse-over-reverse":
        return mode
    if mode == "linearized":
        raise ValueError(
            "mode must be 'auto' or 'reverse-over-reverse', and product_dtype None, with "
            "shard_params: a linearisation would keep all weights on every device"
        )
    return "forward-over-reverse"


def make_host_operator(
    kind: Any,
    params: Any,
    make_iterator: Callable[[], Iterable],
    operands: tuple,
    *,
    mask: Any = None,
    where: Where = is_weight,
    mesh: Mesh | None = None,
) -> Operator:
    """Make the operator that reads its batches in each product; see `hessian_matvec_over`."""
    weights, unflatten = flatten_weights(params, where)
    unflatten, weights, operands = sharding.replicate((unflatten, weights, operands), mesh)
    counts: list[int] = []

    def product(vector):
        total, weight, num_examples = jnp.zeros_like(vector), 0.0, 0
        for batch in make_iterator():
            size = leading_size(batch)
            at = unflatten, weights, batch, operands
            if mesh is None:
                total = _add_product(kind, *at, vector, total)
            else:
                form = lay_out(kind, mesh, unflatten, weights, [batch], operands, False)
                total = total + size * form.recomputed()(vector)
            weight = weight + _weight(kind, *at)
            num_examples += size
        _check_count(num_examples, counts)
        return total / weight

    operator = Operator(product, weights.size, weights.dtype, mesh, traceable=False)
    origin = _origin(kind, params, where, operands, make_iterator)
    operator = replace(operator, origin=origin)
    return operator if mask is None else operator.restrict(flat_mask(mask, params, where))


def _check_count(num_examples: int, counts: list[int]) -> None:
    """Raise unless a pass over the data had examples, and as many as the first one."""
    if not num_examples:
        raise ValueError(
            "make_iterator must return a fresh iterator over the batches each time it is "
            "called, got one without any"
        )
    counts.append(num_examples)
    if counts[0] != num_examples:
        raise ValueError(
            "make_iterator must return an iterator over all batches each time it is called, got "
            f"{counts[0]} examples in one pass and {num_examples} in another"
        )
    del counts[1:]


@partial(jax.jit, static_argnums=0)
def _add_product(kind, unflatten, weights, batch, operands, vector, total):
    product = Recomputed(kind)(unflatten, weights, group_batches([batch]), operands, vector)
    return total + leading_size(batch) * product


def _weight(kind, unflatten, weights, batch, operands):
    if kind.loss.kind != WEIGHTED:
        return leading_size(batch)
    return _sum_of_weights(kind, unflatten, weights, batch, operands)


@partial(jax.jit, static_argnums=0)
def _sum_of_weights(kind, unflatten, weights, batch, operands):
    return weight_of(kind.loss, unflatten(weights), batch, *operands)


def restrict(matvec: Matvec, mask: Bool[Array | np.ndarray, "D"]) -> Operator:
    """Restrict an operator to the principal submatrix on the entries where `mask` is True.

    H[S, S] v = Pᵀ H P v, P the embedding of S. Costs one product, a scatter and a gather.

    Args:
        matvec: the operator on [D].
        mask: True on S; concrete, since its count is the size of the vectors.

    Returns:
        An `Operator` on [sum(mask)], which can do what `matvec` can.

    Raises:
        TypeError: if `mask` is not boolean.
        ValueError: if `mask` is not flat or selects nothing.

    >>> import jax.numpy as jnp
    >>> restrict(lambda v: jnp.arange(3.0) * v, jnp.array([False, True, True]))(jnp.ones(2))
    Array([1., 2.], dtype=float32)
    """
    chosen = np.asarray(mask)
    if not isinstance(matvec, Operator):
        matvec = Operator(matvec, max(chosen.size, 1))
    return matvec.restrict(chosen)
