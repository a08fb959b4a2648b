"""Curvature of a loss as symmetric products with a vector: nothing of size D×D is ever formed.

Every operator here is the derivative of a *gradient map* g(θ) at the weights:

- Hessian: g(θ) = ∇L(θ);
- Gauss-Newton: g(θ) = Jᵀ ∇ℓ(f(θ)), with J = ∂f at the weights held fixed;
- empirical Fisher: g(θ) = Jᵀ l(θ) / N, with l the per-example losses and J = ∂l held fixed.

So one mechanism serves them all: `jax.jvp` of the gradient map for each product, or
`jax.linearize` of it once and then only its linear part.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from jaxlimit._batches import check_like, check_scalar, first_batch, group_batches, leading_size
from jaxlimit._checks import check_choice, check_floating_tree
from jaxlimit._products import narrow_products
from jaxlimit._weights import Where, flatten_weights, is_weight

Matvec = Callable[[Array], Array]

HVP_MODES = (
    "forward-over-reverse",
    "reverse-over-forward",
    "reverse-over-reverse",
    "finite-difference",
)
MATVEC_MODES = ("auto", "linearized", "forward-over-reverse")


def hvp(
    loss: Callable, params: Any, tangent: Any, *args: Any, mode: str = "forward-over-reverse"
) -> Any:
    """Multiply the Hessian of a loss with one tangent.

    H v = ∂/∂t ∇L(w + t v) at t = 0. Costs about two gradients; memory as a gradient.

    Args:
        loss: `loss(params, *args)`, a scalar.
        params: pytree of real floating arrays.
        tangent: v, a pytree like `params`.
        *args: the rest of what `loss` takes.
        mode: "forward-over-reverse" (the fastest), "reverse-over-forward",
            "reverse-over-reverse", or "finite-difference", a central difference of the gradient
            that shares no differentiation rule with the others, good to about ε^(2/3).

    Returns:
        H v, a pytree like `params`.

    Raises:
        TypeError: if a leaf of `params` is not real floating, or `loss` gives no scalar.
        ValueError: if `params` holds NaN or infinity, `tangent` has another structure, or `mode`
            is unknown.

    >>> import jax.numpy as jnp
    >>> hvp(lambda w: w[0] ** 2 * w[1], jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
    Array([4., 2.], dtype=float32)

    Pearlmutter (1994), "Fast exact multiplication by the Hessian".
    """
    check_choice("mode", mode, HVP_MODES)
    check_floating_tree("params", params)
    check_like("tangent", tangent, params)
    check_scalar(loss, params, *args)
    value = partial(_bind_trailing, loss, args)
    gradient = jax.grad(value)
    if mode == "forward-over-reverse":
        return jax.jvp(gradient, (params,), (tangent,))[1]
    if mode == "reverse-over-forward":
        return jax.grad(lambda p: jax.jvp(value, (p,), (tangent,))[1])(params)
    if mode == "reverse-over-reverse":
        return jax.vjp(gradient, params)[1](tangent)[0]
    return _finite_difference(gradient, params, tangent)


def _bind_trailing(loss: Callable, args: tuple, params: Any) -> Array:
    return loss(params, *args)


def _finite_difference(gradient: Callable, params: Any, tangent: Any) -> Any:
    dtype = jnp.result_type(*jax.tree.leaves(params))
    norm = lambda tree: jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree)))  # noqa: E731
    scale = (1 + norm(params)) / jnp.maximum(norm(tangent), jnp.finfo(dtype).tiny)
    step = jnp.finfo(dtype).eps ** (1 / 3) * scale
    shifted = lambda t: gradient(jax.tree.map(lambda p, v: p + t * v, params, tangent))  # noqa: E731
    return jax.tree.map(lambda a, b: (a - b) / (2 * step), shifted(step), shifted(-step))


class MatvecSettings(TypedDict, total=False):
    """Keyword settings that all operators of this module share.

    Attributes:
        mask: which of the selected weights are under study, True = studied: a pytree like
            `params` or a flat array [D], concrete. Vectors then have sum(mask) entries.
        where: `where(name, leaf)` selects the leaves under study, the others are constants.
            Default: everything but BatchNorm's scale and shift.
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


def hessian_matvec(
    loss: Callable, params: Any, batches: Any, *operands: Any, **settings: Unpack[MatvecSettings]
) -> Partial:
    """Make the product with the Hessian of the mean loss over all examples.

    H = (1/N) Σ_b n_b ∇²L(w; batch b), n_b the size of batch b and N their sum, restricted to the
    weights under study. One product costs about two gradients over the data; linearised, six
    matrix products a dense layer (two for the first).

    Args:
        loss: `loss(params, batch, *operands)`, the mean over the batch's examples. Model state
            such as BatchNorm statistics comes in as an operand, never by closure.
        params: pytree of real floating arrays.
        batches: a pytree whose leaves are [num_batches, batch, ...], or a list of batches of
            unequal size, each a pytree whose leaves are [batch, ...].
        *operands: passed on to `loss`.
        **settings: see `MatvecSettings`.

    Returns:
        A `Partial` from [D] to [D], D the number of weights under study. It carries its arrays as
        operands through `jit`, `vmap` and `scan`.

    Raises:
        TypeError: if a leaf of `params` is not real floating, or `loss` gives no scalar.
        ValueError: if `params` is not finite, `batches` is empty or ragged within a batch, `mask`
            has another size or selects nothing, or `mode` is unknown.

    >>> import jax.numpy as jnp
    >>> loss = lambda w, batch: 0.5 * jnp.mean((batch @ w) ** 2)
    >>> matvec = hessian_matvec(loss, jnp.zeros(2), jnp.array([[[1.0, 0.0], [0.0, 2.0]]]))
    >>> matvec(jnp.ones(2))
    Array([0.5, 2. ], dtype=float32)
    """
    check_scalar(loss, params, first_batch(batches), *operands)
    return _operator(_Hessian(loss), params, batches, operands, **settings)


def gauss_newton_matvec(
    apply: Callable,
    output_loss: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    **settings: Unpack[MatvecSettings],
) -> Partial:
    """Make the product with the Gauss-Newton matrix of a loss of a network's outputs.

    G = (1/N) Σ Jᵀ ∇²ℓ J, the Hessian without the curvature of the network itself: positive
    semi-definite where `output_loss` is convex, of rank at most N·(outputs an example).

    Args:
        apply: `apply(params, batch, *operands)`, the network's outputs on a batch.
        output_loss: `output_loss(outputs, batch)`, the mean over the batch's examples.
        params: pytree of real floating arrays.
        batches: as for `hessian_matvec`.
        *operands: passed on to `apply`.
        **settings: see `MatvecSettings`.

    Returns:
        A `Partial` from [D] to [D], as `hessian_matvec`.

    Raises:
        TypeError: as `hessian_matvec`.
        ValueError: as `hessian_matvec`.

    >>> import jax.numpy as jnp
    >>> apply = lambda w, x: jnp.tanh(x @ w)
    >>> square = lambda y, x: 0.5 * jnp.mean(y**2)
    >>> matvec = gauss_newton_matvec(apply, square, jnp.zeros(2), jnp.ones((1, 3, 2)))
    >>> matvec(jnp.ones(2))
    Array([2., 2.], dtype=float32)

    Schraudolph (2002), "Fast curvature matrix-vector products for second-order gradient descent".
    """
    kind = _GaussNewton(apply, output_loss)
    check_scalar(kind.loss, params, first_batch(batches), *operands)
    return _operator(kind, params, batches, operands, **settings)


def fisher_matvec(
    apply: Callable,
    params: Any,
    batches: Any,
    *operands: Any,
    example_losses: Callable | None = None,
    **settings: Unpack[MatvecSettings],
) -> Partial:
    """Make the product with the Fisher information of a classifier, exact or empirical.

    Exact, labels drawn from the model itself: F = (1/N) Σ Jᵀ (diag p - p pᵀ) J, p the softmax of
    the logits. Empirical, at the labels given: F̂ = (1/N) Σ ∇lₙ ∇lₙᵀ. Only the exact one is a
    Gauss-Newton matrix; the other can be far from it (Kunstner, Balles, Hennig 2019).

    Args:
        apply: `apply(params, batch, *operands)`, logits [batch, classes].
        params: pytree of real floating arrays.
        batches: as for `hessian_matvec`.
        *operands: passed on to `apply`.
        example_losses: None for the exact matrix; `example_losses(outputs, batch)`, a loss for
            each example [batch], for the empirical one.
        **settings: see `MatvecSettings`.

    Returns:
        A `Partial` from [D] to [D], positive semi-definite.

    Raises:
        TypeError: as `hessian_matvec`.
        ValueError: as `hessian_matvec`.

    >>> import jax.numpy as jnp
    >>> matvec = fisher_matvec(lambda w, x: x @ w.reshape(2, 2), jnp.zeros(4), jnp.ones((1, 1, 2)))
    >>> matvec(jnp.array([1.0, 0.0, 0.0, 0.0]))
    Array([ 0.25, -0.25,  0.25, -0.25], dtype=float32)
    """
    if example_losses is not None:
        kind = _EmpiricalFisher(apply, example_losses)
        return _operator(kind, params, batches, operands, **settings)
    return gauss_newton_matvec(apply, _log_partition, params, batches, *operands, **settings)


def _log_partition(logits: Float[Array, "n classes"], batch: Any) -> Array:
    # The labels' own term is linear in the logits: the Hessian at the outputs is diag p - p pᵀ.
    del batch
    return jax.nn.logsumexp(logits, axis=-1).mean()


# Each kind gives the gradient map over a stack of batches, with what is held fixed taken at
# `weights`. Frozen dataclasses, so that equal ones share compiled programs.


@dataclass(frozen=True)
class _Hessian:
    loss: Callable

    def gradient_map(self, unflatten: Partial, weights: Array, batches: Any, operands: tuple):
        del weights

        def mean_loss(vector):
            return jax.vmap(lambda b: self.loss(unflatten(vector), b, *operands))(batches).mean()

        return jax.grad(mean_loss)


@dataclass(frozen=True)
class _GaussNewton:
    apply: Callable
    output_loss: Callable

    def loss(self, params: Any, batch: Any, *operands: Any) -> Array:
        return self.output_loss(self.apply(params, batch, *operands), batch)

    def gradient_map(self, unflatten: Partial, weights: Array, batches: Any, operands: tuple):
        def outputs(vector):
            return jax.vmap(lambda b: self.apply(unflatten(vector), b, *operands))(batches)

        def mean_loss(outputs):
            return jax.vmap(self.output_loss)(outputs, batches).mean()

        _, transpose = jax.vjp(outputs, weights)
        return lambda vector: transpose(jax.grad(mean_loss)(outputs(vector)))[0]


@dataclass(frozen=True)
class _EmpiricalFisher:
    apply: Callable
    example_losses: Callable

    def gradient_map(self, unflatten: Partial, weights: Array, batches: Any, operands: tuple):
        def losses(vector):
            example_losses = lambda b: self.example_losses(  # noqa: E731
                self.apply(unflatten(vector), b, *operands), b
            )
            return jax.vmap(example_losses)(batches)

        values, transpose = jax.vjp(losses, weights)
        return lambda vector: transpose(losses(vector) / values.size)[0]


@dataclass(frozen=True)
class _Product:
    """One product, the primal pass recomputed, batch by batch."""

    kind: Any

    def __call__(self, unflatten, weights, groups, operands, vector):
        def add(total, batch):
            stack = jax.tree.map(lambda leaf: leaf[None], batch)
            gradient = self.kind.gradient_map(unflatten, weights, stack, operands)
            return total + jax.jvp(gradient, (weights,), (vector,))[1], None

        total = jnp.zeros_like(vector)
        for group in groups:
            num_batches = leading_size(group.batches)
            sum_over_group, _ = jax.lax.scan(add, jnp.zeros_like(vector), group.batches)
            total += group.share / num_batches * sum_over_group
        return total


@partial(jax.jit, static_argnums=(0, 1))
def _linearize(kind, product_dtype, unflatten, weights, groups, operands) -> Partial:
    def mean_gradient(vector):
        return sum(
            group.share * kind.gradient_map(unflatten, weights, group.batches, operands)(vector)
            for group in groups
        )

    _, linear = jax.linearize(mean_gradient, weights)
    return linear if product_dtype is None else narrow_products(linear, weights, product_dtype)


@jax.jit
def _compiled(matvec: Partial, vector: Array) -> Array:
    return matvec(vector)


def _operator(
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
    check_choice("mode", mode, MATVEC_MODES)
    if product_dtype is not None and mode == "forward-over-reverse":
        raise ValueError(f"product_dtype needs mode 'linearized' or 'auto', got {mode!r}")
    weights, unflatten = flatten_weights(params, where)
    operator_args = (unflatten, weights, group_batches(batches), operands)
    if mode == "auto" and product_dtype is None:
        stored = jax.eval_shape(partial(_linearize, kind, None), *operator_args)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored))
        mode = "linearized" if size <= memory_budget else "forward-over-reverse"
    if mode == "forward-over-reverse":
        matvec = Partial(_Product(kind), *operator_args)
    else:
        matvec = _linearize(kind, product_dtype, *operator_args)
    matvec = Partial(_compiled, matvec)
    return matvec if mask is None else restrict(matvec, _flat_mask(mask, params, where))


def mean_gradient(
    loss: Callable, params: Any, batches: Any, *operands: Any, where: Where = is_weight
) -> Float[Array, "D"]:
    """Return the gradient of the mean loss over all examples, flat, batch by batch.

    Args:
        loss: as for `hessian_matvec`, like all of these.
        params: pytree of real floating arrays.
        batches: stacked, or a list.
        *operands: passed on to `loss`.
        where: leaves under study.

    Raises:
        TypeError: as `hessian_matvec`.
        ValueError: as `hessian_matvec`.

    >>> import jax.numpy as jnp
    >>> mean_gradient(lambda w, x: jnp.mean(x @ w), jnp.zeros(2), jnp.eye(2)[None])
    Array([0.5, 0.5], dtype=float32)
    """
    check_scalar(loss, params, first_batch(batches), *operands)
    weights, unflatten = flatten_weights(params, where)
    return _gradient(loss, unflatten, weights, group_batches(batches), operands)


@partial(jax.jit, static_argnums=0)
def _gradient(loss, unflatten, weights, groups, operands):
    def of_group(group):
        def add(total, batch):
            of_batch = jax.grad(lambda vector: loss(unflatten(vector), batch, *operands))
            return total + of_batch(weights), None

        total, _ = jax.lax.scan(add, jnp.zeros_like(weights), group.batches)
        return group.share / leading_size(group.batches) * total

    return sum(of_group(group) for group in groups)


def restrict(matvec: Matvec, mask: Bool[Array, "D"]) -> Partial:
    """Restrict an operator to the principal submatrix on the entries where `mask` is True.

    H[S, S] v = Pᵀ H P v, P the embedding of S. Costs one product, a scatter and a gather.

    Args:
        matvec: the operator on [D].
        mask: True on S; concrete, since its count is the size of the vectors.

    Returns:
        A `Partial` from [sum(mask)] to [sum(mask)].

    Raises:
        ValueError: if `mask` selects nothing.

    >>> import jax.numpy as jnp
    >>> restrict(lambda v: jnp.arange(3.0) * v, jnp.array([False, True, True]))(jnp.ones(2))
    Array([1., 2.], dtype=float32)
    """
    mask = np.asarray(mask, bool)
    if mask.ndim != 1 or not mask.any():
        raise ValueError(
            f"mask must be flat and select at least one entry, got shape {mask.shape} "
            f"with {mask.sum()} selected"
        )
    index = jnp.asarray(np.flatnonzero(mask), jnp.int32)
    matvec = matvec if isinstance(matvec, Partial) else Partial(matvec)
    return Partial(_restricted_product, matvec, index, jnp.zeros(mask.size, bool))


@jax.jit
def _restricted_product(matvec: Partial, index: Array, like: Array, vector: Array) -> Array:
    embedded = jnp.zeros(like.shape, vector.dtype).at[index].set(vector, unique_indices=True)
    return matvec(embedded)[index]


def _flat_mask(mask: Any, params: Any, where: Where) -> np.ndarray:
    size = flatten_weights(params, where)[0].size
    if not isinstance(mask, jax.Array | np.ndarray) or jnp.ndim(mask) != 1:
        as_floats = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), mask)
        check_like("mask", as_floats, params)
        mask = flatten_weights(as_floats, where)[0] > 0
    if mask.shape != (size,):
        raise ValueError(
            f"mask must have one entry for each of the {size} weights under study, "
            f"got shape {mask.shape}"
        )
    return np.asarray(mask, bool)
